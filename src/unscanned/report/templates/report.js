for (const browser of document.querySelectorAll(".browser")) {
  const { slices, columns, rows } = browser.dataset;
  const slider = browser.querySelector("input");
  const show = () => {
    const index = slider.value - 1;
    const x = columns > 1 ? (index % columns) / (columns - 1) : 0;
    const y = rows > 1 ? Math.floor(index / columns) / (rows - 1) : 0;
    for (const tile of browser.querySelectorAll(".tile")) {
      tile.style.backgroundPosition = `${100 * x}% ${100 * y}%`;
    }
    browser.querySelector("output").value = `${slider.value} of ${slices}`;
  };
  slider.addEventListener("input", show);
  show();
}
