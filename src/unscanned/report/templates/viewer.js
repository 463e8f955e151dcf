"use strict";
/* The volumes of a page, drawn by NiiVue. One WebGL context draws every panel in turn, and each panel keeps the picture
   in a canvas of its own: a browser allows few contexts, and a picture that is copied out has its stamp in it. */
(async () => {
  const root = document.querySelector(".viewer");
  if (!root) return;
  const note = root.querySelector(".viewer-note");
  const refuse = (why) => { note.textContent = `${why} The pictures in three planes stand in its place.`; };
  if (!document.createElement("canvas").getContext("webgl2")) return refuse("This browser has no WebGL 2, which the viewer needs.");
  if (!window.DecompressionStream) return refuse("This browser cannot unpack gzip, which the viewer needs.");

  const PLANES = [
    { name: "sagittal", axis: 0, slice: 2 },
    { name: "coronal", axis: 1, slice: 1 },
    { name: "axial", axis: 2, slice: 0 },
  ];
  const { stamp, cases } = JSON.parse(document.getElementById("viewer-facts").textContent);
  const find = (selector) => root.querySelector(selector);
  const content = (id) => document.getElementById(id).textContent;

  const unpack = async (base64) => {
    const binary = atob(base64);
    const bytes = new Uint8Array(binary.length);
    for (let n = 0; n < binary.length; n++) bytes[n] = binary.charCodeAt(n);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };

  /* The levels of a volume, i fastest: the reverse of packed.py. */
  const unfold = (bytes, [ni, nj, nk], mask) => {
    const levels = new Uint16Array(ni * nj * nk);
    const high = bytes.length / 2;
    let at = 0, next = 0;
    for (let k = 0; k < nk; k++) for (let j = 0; j < nj; j++) for (let i = 0; i < ni; i++, at++) {
      if (mask && !mask[at]) continue;
      const folded = bytes[next] | (bytes[high + next] << 8);
      next++;
      const difference = folded & 1 ? -((folded + 1) >> 1) : folded >> 1;
      const sum = (i ? levels[at - 1] : 0) + (j ? levels[at - ni] : 0) + (k ? levels[at - ni * nj] : 0);
      levels[at] = Math.floor(sum / 3) + difference;
    }
    return levels;
  };

  const inverse = (m) => {
    const [a, b, c, , d, e, f, , g, h, i] = m;
    const det = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g);
    return [
      (e * i - f * h) / det, (c * h - b * i) / det, (b * f - c * e) / det,
      (f * g - d * i) / det, (a * i - c * g) / det, (c * d - a * f) / det,
      (d * h - e * g) / det, (b * g - a * h) / det, (a * e - b * d) / det,
    ];
  };
  const toVoxel = (image, mm) => {
    const m = image.affine, v = [mm[0] - m[3], mm[1] - m[7], mm[2] - m[11]], n = image.inverse;
    return [0, 3, 6].map((row) => Math.round(n[row] * v[0] + n[row + 1] * v[1] + n[row + 2] * v[2]));
  };
  const toMm = ({ affine: m }, [i, j, k]) => [0, 4, 8].map((row) => m[row] * i + m[row + 1] * j + m[row + 2] * k + m[row + 3]);

  /* A NIfTI-1 file in memory, which is what NiiVue reads. */
  const nifti = (image, voxels) => {
    const isFloat = voxels instanceof Float32Array;
    const buffer = new ArrayBuffer(352 + voxels.byteLength);
    const view = new DataView(buffer);
    const spacing = [0, 1, 2].map((axis) => Math.hypot(image.affine[axis], image.affine[4 + axis], image.affine[8 + axis]));
    view.setInt32(0, 348, true);
    [3, ...image.shape, 1, 1, 1, 1].forEach((size, n) => view.setInt16(40 + 2 * n, size, true));
    view.setInt16(70, isFloat ? 16 : 512, true);
    view.setInt16(72, isFloat ? 32 : 16, true);
    [1, ...spacing, 1, 1, 1, 1].forEach((size, n) => view.setFloat32(76 + 4 * n, size, true));
    view.setFloat32(108, 352, true);
    view.setFloat32(112, isFloat ? 1 : image.step, true);
    view.setFloat32(116, isFloat ? 0 : image.low, true);
    view.setUint8(123, 2);
    view.setInt16(254, 1, true);
    image.affine.slice(0, 12).forEach((value, n) => view.setFloat32(280 + 4 * n, value, true));
    [0x6e, 0x2b, 0x31, 0].forEach((byte, n) => view.setUint8(344 + n, byte));
    new Uint8Array(buffer, 352).set(new Uint8Array(voxels.buffer));
    return buffer;
  };

  const read = async (entry, number) => {
    const mask = entry.mask ? await unpack(content(entry.mask)) : null;
    const images = [];
    for (const facts of entry.images) {
      note.textContent = `Unpacking ${facts.name} …`;
      const levels = unfold(await unpack(content(facts.data)), facts.shape, mask);
      images.push({ ...facts, inverse: inverse(facts.affine), levels, mask, value: (at) => facts.low + facts.step * levels[at] });
    }
    for (const facts of entry.differences) {
      const one = images[facts.of], other = images[facts.from];
      images.push({
        ...facts, isDifference: true, shape: one.shape, affine: one.affine, inverse: one.inverse, mask,
        value: (at) => (one.value(at) - other.value(at)) / facts.divide,
      });
    }
    for (const image of images) {
      const [ni, nj, nk] = image.shape;
      let voxels = image.levels;
      if (!voxels) {
        voxels = new Float32Array(ni * nj * nk);
        for (let at = 0; at < voxels.length; at++) if (!mask || mask[at]) voxels[at] = image.value(at);
      }
      image.volume = await niivue.NVImage.new(nifti(image, voxels), image.name + ".nii", image.isDifference ? "difference" : "gray", 1, null, ...image.window);
      image.texture = null;
    }
    return { ...entry, number, images };
  };

  const begin = async () => {
    note.textContent = "Starting the viewer …";
    const script = document.createElement("script");
    script.textContent = new TextDecoder().decode(await unpack(content("niivue")));
    document.head.append(script);

    const stage = document.createElement("canvas");
    stage.className = "stage";
    const holder = document.createElement("div");
    holder.append(stage);
    const nv = new niivue.Niivue({
      interactive: false, isResizeCanvas: false, dragAndDropEnabled: false, logLevel: "silent", loadingText: "",
      isRadiologicalConvention: true, sagittalNoseLeft: true, backColor: [0, 0, 0, 1],
      crosshairWidthUnit: "mm", multiplanarLayout: niivue.MULTIPLANAR_TYPE.ROW,
      multiplanarShowRender: niivue.SHOW_RENDER.NEVER, multiplanarPadPixels: 2, isOrientationTextVisible: false,
      show3Dcrosshair: true,
    });
    await nv.attachToCanvas(stage, false);
    stage.addEventListener("webglcontextlost", () => fail("the graphics card was lost"));
    // With every texture NiiVue computes its gradients, which only renderings need: seconds where there is no GPU.
    let isDrawing = true;
    const drawArrays = nv.gl.drawArrays.bind(nv.gl), useBlur = nv.blurShader.use.bind(nv.blurShader);
    nv.gl.drawArrays = (...what) => { if (isDrawing) drawArrays(...what); };
    nv.blurShader.use = (gl) => { isDrawing = false; useBlur(gl); };
    nv.addColormap("difference", {
      R: [5, 67, 247, 214, 103], G: [48, 147, 247, 96, 0], B: [97, 195, 247, 77, 31], A: [255, 255, 255, 255, 255], I: [0, 64, 128, 192, 255],
    });

    const state = { entry: null, mm: [0, 0, 0], focus: [0, 0, 0], zoom: 1, planes: "all", hover: null, panels: [] };
    const letters = { 0: ["R", "L", "A", "P"], 1: ["R", "L", "S", "I"], 2: ["A", "P", "S", "I"] };

    /* Make NiiVue see one image and no other. */
    const face = (panel) => {
      const { image } = panel;
      nv.volumes = [image.volume];
      nv.back = image.volume;
      nv.overlays = [];
      nv.volumeTexture = image.texture;
      if (image.stale || !image.texture) {
        [image.volume.cal_min, image.volume.cal_max] = image.window;
        nv.refreshLayers(image.volume, 0);
        isDrawing = true;
        image.texture = nv.volumeTexture;
        image.object = nv.volumeObject3D;
        image.stale = false;
      }
      nv.volumeObject3D = image.object;
      nv.opts.crosshairColor = image.isDifference ? [0.05, 0.3, 0.42, 0.9] : [0.35, 0.8, 1, 0.9];
      nv.screenSlices = panel.slices;
      nv.crosshairs3D = null;
    };

    const forget = (image) => {
      if (image.texture) nv.gl.deleteTexture(image.texture);
      image.texture = null;
    };

    const extent = ({ shape, affine }) => {
      const mm = [0, 1, 2].map((axis) => shape[axis] * Math.hypot(affine[axis], affine[4 + axis], affine[8 + axis]));
      const world = [0, 1, 2].map((row) => {
        const along = [0, 1, 2].map((axis) => Math.abs(affine[4 * row + axis]));
        return along.indexOf(Math.max(...along));
      });
      return { sizes: world.map((axis) => mm[axis]), world };
    };

    const fit = (panel) => {
      const { sizes: [x, y, z] } = panel.extent;
      const [across, up] = { all: [2 * x + y, Math.max(y, z)], axial: [x, y], coronal: [x, z], sagittal: [y, z] }[state.planes];
      const width = Math.round(panel.canvas.clientWidth * Math.min(2, window.devicePixelRatio || 1));
      const height = Math.round((width * up) / across);
      panel.pixel = across / width;
      if (!width || (panel.canvas.width === width && panel.canvas.height === height)) return;
      [panel.canvas.width, panel.canvas.height] = [width, height];
    };

    const band = (context, text, x, y, width) => {
      let size = Math.max(8, width / 14);
      context.font = `600 ${size}px system-ui, sans-serif`;
      size = Math.min(size, (0.94 * size * width) / context.measureText(text).width);
      context.font = `600 ${size}px system-ui, sans-serif`;
      context.fillStyle = "rgba(0, 0, 0, 0.65)";
      context.fillRect(x, y - 1.35 * size, width, 1.35 * size);
      context.fillStyle = "#ffd166";
      context.textAlign = "center";
      context.textBaseline = "alphabetic";
      context.fillText(text, x + width / 2, y - 0.35 * size);
    };

    const draw = (panel) => {
      const { canvas, image } = panel;
      stage.width = canvas.width;
      stage.height = canvas.height;
      nv.opts.sliceType = state.planes === "all" ? niivue.SLICE_TYPE.MULTIPLANAR : PLANES.find(({ name }) => name === state.planes).slice;
      face(panel);
      nv.scene.crosshairPos = nv.mm2frac(state.mm, 0, true);
      const focus = nv.frac2mm(nv.mm2frac(state.focus, 0, true));
      nv.scene.pan2Dxyzmm = [...[0, 1, 2].map((axis) => focus[axis] * (1 - state.zoom)), state.zoom];
      nv.opts.crosshairWidth = (1.5 * panel.pixel) / state.zoom;
      nv.drawScene();
      panel.slices = nv.screenSlices;
      const context = canvas.getContext("2d");
      context.fillStyle = "#000";
      context.fillRect(0, 0, canvas.width, canvas.height);
      context.drawImage(stage, 0, 0);
      for (const { leftTopWidthHeight: place, axCorSag } of panel.slices) {
        const left = Math.min(place[0], place[0] + place[2]), width = Math.abs(place[2]), [, top, , height] = place;
        const size = Math.max(9, width / 16);
        context.font = `600 ${size}px system-ui, sans-serif`;
        [context.fillStyle, context.strokeStyle] = image.isDifference ? ["#0b4f6c", "#fff"] : ["#8fd3ff", "#000"];
        context.lineWidth = size / 5;
        context.lineJoin = "round";
        context.textBaseline = "middle";
        const [west, east, north, south] = letters[axCorSag];
        [[west, "left", 3, height / 2], [east, "right", width - 3, height / 2], [north, "center", width / 2, size * 0.7],
          [south, "right", width - 3, height - size * (image.synthetic ? 2.2 : 0.7)]].forEach(([letter, align, x, y]) => {
          context.textAlign = align;
          context.strokeText(letter, left + x, top + y);
          context.fillText(letter, left + x, top + y);
        });
        if (image.synthetic) band(context, stamp, left, top + height, width);
      }
    };

    const shown = () => state.panels.filter(({ figure }) => !figure.hidden);
    /* Panels are drawn in turn, so that the page answers between them where drawing is slow. */
    const pending = new Set();
    let isAsked = false;
    const drawPending = () => {
      isAsked = false;
      const began = performance.now();
      for (const panel of pending) {
        if (performance.now() - began > 40) break;
        pending.delete(panel);
        if (!panel.figure.hidden) draw(panel);
      }
      if (pending.size) ask();
    };
    const ask = () => {
      if (!isAsked) requestAnimationFrame(drawPending);
      isAsked = true;
    };
    const redraw = () => {
      shown().forEach((panel) => pending.add(panel));
      tell();
      ask();
    };

    const valueAt = (image, mm) => {
      const [i, j, k] = toVoxel(image, mm), [ni, nj, nk] = image.shape;
      if (i < 0 || j < 0 || k < 0 || i >= ni || j >= nj || k >= nk) return null;
      const at = i + ni * (j + nj * k);
      return image.mask && !image.mask[at] ? null : image.value(at);
    };
    const digits = (image) => Math.max(0, Math.min(6, Math.ceil(-Math.log10(image.step || 0.01))));
    const format = (value, places) => value.toFixed(places).replace("-", "−");
    const round = (value) => format(value, Math.max(0, Math.min(4, 2 - Math.floor(Math.log10(Math.abs(value) || 1)))));

    const tell = () => {
      const mm = state.hover || state.mm;
      for (const { image, output } of state.panels) {
        const value = valueAt(image, mm);
        output.dataset.value = value === null ? "" : value;
        const text = value === null ? "–" : format(value, digits(image)) + (image.unit ? ` ${image.unit}` : "");
        output.textContent = text + (value !== null && image.scale ? ` · ${format(value * image.scale, 1)} in the file` : "");
      }
      const first = state.panels[0].image;
      const [i, j, k] = toVoxel(first, mm);
      const where = find(".where");
      where.dataset.voxel = [i, j, k].join(",");
      where.textContent = `voxel ${i}, ${j}, ${k} · ${mm.map((value) => format(value, 1)).join(", ")} mm (right, front, up)`;
      for (const { axis, name } of PLANES) {
        const slider = find(`input[data-plane=${name}]`), along = state.panels[0].extent.world[axis];
        slider.value = toVoxel(first, state.mm)[along];
        slider.nextElementSibling.value = `${Number(slider.value) + 1} of ${first.shape[along]}`;
      }
    };

    /* Where a pointer is: the slice under it, and the place in mm, at the centre of a voxel of that image. */
    const locate = (panel, event) => {
      const box = panel.canvas.getBoundingClientRect();
      const x = ((event.clientX - box.left) * panel.canvas.width) / box.width, y = ((event.clientY - box.top) * panel.canvas.height) / box.height;
      face(panel);
      const inside = ({ leftTopWidthHeight: [left, top, width, height] }) =>
        x >= Math.min(left, left + width) && x <= Math.max(left, left + width) && y >= top && y <= top + height;
      const slice = panel.slices.find(inside);
      nv.scene.crosshairPos = nv.mm2frac(state.mm, 0, true);
      const frac = nv.canvasPos2frac([x, y]);
      if (!slice || frac[0] < 0) return null;
      const voxel = toVoxel(panel.image, nv.frac2mm(frac, 0, true)).map((at, axis) => Math.min(Math.max(at, 0), panel.image.shape[axis] - 1));
      return { plane: PLANES.find((plane) => plane.slice === slice.axCorSag), mm: toMm(panel.image, voxel) };
    };

    const step = (panel, axis, by) => {
      const { image } = panel, along = panel.extent.world[axis], voxel = toVoxel(image, state.mm);
      const up = image.affine[4 * axis + along] > 0 ? 1 : -1, to = voxel[along] + up * by;
      if (to < 0 || to >= image.shape[along]) return false;
      voxel[along] = to;
      state.mm = toMm(image, voxel);
      if (state.hover) {
        const under = toVoxel(image, state.hover);
        under[along] = to;
        state.hover = toMm(image, under);
      }
      redraw();
      return true;
    };

    const listen = (panel) => {
      const { canvas } = panel;
      let leveling = null;
      canvas.addEventListener("pointerdown", (event) => {
        if (event.button === 2) {
          leveling = { x: event.clientX, y: event.clientY, window: Number(find("[name=window]").value), level: Number(find("[name=level]").value) };
          canvas.setPointerCapture(event.pointerId);
          return;
        }
        const place = locate(panel, event);
        if (!place) return;
        state.mm = place.mm;
        redraw();
      });
      canvas.addEventListener("pointermove", (event) => {
        if (leveling) {
          find("[name=window]").value = leveling.window + (event.clientX - leveling.x) / 2;
          find("[name=level]").value = leveling.level - (event.clientY - leveling.y) / 2;
          relevel();
          return;
        }
        if (event.pointerType === "touch") return;
        const place = locate(panel, event);
        state.hover = place && place.mm;
        if (place && event.buttons === 1) {
          state.mm = place.mm;
          redraw();
        } else tell();
      });
      canvas.addEventListener("pointerup", () => { leveling = null; });
      canvas.addEventListener("pointerleave", () => { state.hover = null; tell(); });
      canvas.addEventListener("contextmenu", (event) => event.preventDefault());
      canvas.addEventListener("wheel", (event) => {
        if (event.ctrlKey || event.metaKey) {
          event.preventDefault();
          const zoom = find("[name=zoom]");
          zoom.value = Number(zoom.value) - Math.sign(event.deltaY) * 25;
          rezoom();
          return;
        }
        const place = locate(panel, event);
        if (place && event.deltaY && step(panel, place.plane.axis, event.deltaY < 0 ? 1 : -1)) event.preventDefault();
      }, { passive: false });
    };

    /* Window and level are shares, in per cent, of what the page proposes: 100 and 50 show it as the pictures do. */
    const relevel = () => {
      const width = Number(find("[name=window]").value) / 100, level = Number(find("[name=level]").value) / 100, limit = Number(find("[name=limit]").value) / 100;
      for (const { image } of state.panels) {
        const [low, high] = image.proposed;
        const span = high - low;
        const window = image.isDifference ? [low * limit, high * limit] : [low + span * (level - width / 2), low + span * (level + width / 2)];
        if (window[0] !== image.window[0] || window[1] !== image.window[1]) {
          image.window = window;
          image.stale = true;
        }
      }
      const first = state.panels.find(({ image }) => !image.isDifference), difference = state.panels.find(({ image }) => image.isDifference);
      find("[name=window]").nextElementSibling.value = round(first.image.window[1] - first.image.window[0]);
      find("[name=level]").nextElementSibling.value = round((first.image.window[1] + first.image.window[0]) / 2);
      if (difference) find("[name=limit]").nextElementSibling.value = `± ${round(difference.image.window[1])} ${difference.image.unit}`;
      find("[name=limit]").closest("label").hidden = !difference;
      redraw();
    };

    const rezoom = () => {
      state.zoom = Number(find("[name=zoom]").value) / 100;
      state.focus = [...state.mm];
      find("[name=zoom]").nextElementSibling.value = `${state.zoom.toFixed(1)} ×`;
      redraw();
    };

    const lay = () => {
      root.dataset.planes = state.planes;
      shown().forEach(fit);
      redraw();
    };

    const choose = (panel, isShown) => {
      panel.figure.hidden = !isShown;
      if (isShown) fit(panel);
      else forget(panel.image);
      redraw();
    };

    const open = async (number) => {
      pending.clear();
      state.panels.forEach(({ image }) => forget(image));
      const entry = await read(cases[number], number);
      const panels = find(".panels"), chips = find(".chips");
      panels.replaceChildren();
      chips.replaceChildren();
      const stack = (group) => {
        while (panels.children.length <= group) panels.append(Object.assign(document.createElement("div"), { className: "stack" }));
        return panels.children[group];
      };
      // The value and the sliders are those of the first panel; the page shows the source before the truth.
      state.panels = [...entry.images].sort((one, other) => one.group - other.group || (other.first || 0) - (one.first || 0)).map((image) => {
        const figure = document.createElement("figure"), canvas = document.createElement("canvas");
        const caption = document.createElement("figcaption"), name = document.createElement("b"), output = document.createElement("output");
        name.textContent = image.name;
        canvas.setAttribute("role", "img");
        canvas.setAttribute("aria-label", image.synthetic ? `${image.name}, ${stamp}` : image.name);
        caption.append(name, output);
        figure.append(canvas, caption);
        figure.className = "panel";
        stack(image.group).append(figure);
        const panel = { image, figure, canvas, output, slices: [], extent: extent(image) };
        image.proposed = image.window;
        const label = document.createElement("label"), box = document.createElement("input");
        box.type = "checkbox";
        box.checked = true;
        box.addEventListener("change", () => choose(panel, box.checked));
        label.append(box, image.name);
        chips.append(label);
        listen(panel);
        return panel;
      });
      state.entry = entry;
      const first = state.panels[0];
      state.mm = toMm(first.image, entry.start);
      state.focus = [...state.mm];
      for (const { name, axis } of PLANES) find(`input[data-plane=${name}]`).max = first.image.shape[first.extent.world[axis]] - 1;
      find(".precision").textContent = entry.precision;
      lay();
      relevel();
      rezoom();
      while (pending.size) {
        note.textContent = `Drawing ${state.panels.length - pending.size + 1} of ${state.panels.length} …`;
        await new Promise(requestAnimationFrame);
      }
      note.textContent = "";
    };

    for (const { name, axis } of PLANES) {
      find(`input[data-plane=${name}]`).addEventListener("input", (event) => {
        const { image, extent: { world } } = state.panels[0], voxel = toVoxel(image, state.mm);
        voxel[world[axis]] = Number(event.target.value);
        state.mm = toMm(image, voxel);
        redraw();
      });
    }
    for (const name of ["window", "level", "limit"]) find(`[name=${name}]`).addEventListener("input", relevel);
    find("[name=zoom]").addEventListener("input", rezoom);
    find("[name=planes]").addEventListener("change", (event) => { state.planes = event.target.value; lay(); });
    find("[name=case]").addEventListener("change", (event) => open(Number(event.target.value)));
    find("[name=reset]").addEventListener("click", () => {
      for (const input of root.querySelectorAll("[name=window], [name=level], [name=limit], [name=zoom]")) input.value = input.defaultValue;
      const first = state.panels[0];
      state.mm = toMm(first.image, state.entry.start);
      relevel();
      rezoom();
    });
    root.classList.add("ready");
    await open(0);
    document.documentElement.classList.add("has-viewer");
    lay();
    new ResizeObserver(lay).observe(find(".panels"));
  };

  const fail = (why) => {
    root.classList.remove("ready");
    document.documentElement.classList.remove("has-viewer");
    root.dataset.state = "failed";
    refuse(`The viewer cannot draw here: ${why}.`);
  };

  try {
    await begin();
    root.dataset.state = "ready";
  } catch (error) {
    fail(error.message);
  }
})();
