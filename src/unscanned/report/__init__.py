"""What it looks like: the HTML page and its pictures."""

LIMIT_MB = 12.0
"Room for the volumes of one case in a page: with NiiVue and the pictures, a page of one case stays below 15 MB."

MOST_MB = 10_000
"More than any browser opens."
