// What a person could not read on a page. tests/report/test_browser.py runs these functions in Chromium.

const channels = (colour) => {
  const numbers = colour.match(/[\d.]+/g).map(Number);
  return colour.startsWith("color(srgb") ? numbers.map((value, i) => i < 3 ? 255 * value : value) : numbers;
};

const luminance = (colour) => {
  const [r, g, b] = channels(colour).slice(0, 3).map((value) => value / 255)
    .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};

const contrast = (one, other) => {
  const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
};

const behind = (element) => {
  const colour = getComputedStyle(element).backgroundColor, parts = channels(colour);
  return parts.length < 4 || parts[3] > 0 ? colour : behind(element.parentElement);
};

const shown = () => [...document.querySelectorAll("main *, header *")].filter((element) =>
  element.getClientRects().length && !element.closest("script, title, option"));

// Texts whose contrast with what is behind them is below 4.5 (WCAG 2.2). `least` is for a test of this test.
const faint = (least = 4.5) => shown()
  .filter((element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()))
  .filter((element) => !element.matches("[data-heatmap] text:not(.tick)"))  // these are on coloured cells
  .filter((element) => {
    const style = getComputedStyle(element);
    return contrast(element instanceof SVGElement ? style.fill : style.color, behind(element)) < least;
  })
  .map((element) => element.outerHTML.slice(0, 80));

// Elements that end to the right of the page. A wide table of heads scrolls by itself.
const outside = () => shown()
  .filter((element) => element.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .filter((element) => !element.closest("thead, .heads"))
  .map((element) => element.outerHTML.slice(0, 80));

// The contrast of the numbers on each colour of a heatmap.
const onColours = () => {
  const row = document.createElement("tr");
  for (let i = 0; i < 8; i++) row.append(Object.assign(document.createElement("td"), { className: `h${i} n${i}` }));
  document.querySelector(".heads").append(row);
  return [...row.cells].map(getComputedStyle).map((style) => contrast(style.color, style.backgroundColor));
};

// Texts of one chart that lie on each other.
const overlapping = () => [...document.querySelectorAll(".chart > svg")].flatMap((svg) => {
  const texts = [...svg.querySelectorAll("text")].map((text) => [text.textContent, text.getBoundingClientRect()]);
  return texts.flatMap(([one, a], i) => texts.slice(i + 1)
    .filter(([, b]) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2
      && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4)
    .map(([other]) => `${one} and ${other}`));
});
