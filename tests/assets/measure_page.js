// What is wider than the window, cut off, overlapping or too small on the page that is shown.
(() => {
  const seen = e => e.getClientRects().length > 0 && getComputedStyle(e).visibility !== "hidden";
  const start = e => e.outerHTML.slice(0, 90);
  const found = {wider: [], small: [], cut: [], overlap: [], texts: 0, drawings: 0};

  for (const e of document.body.querySelectorAll("*")) {
    if (!seen(e) || e.closest(".scrolls, pre")) continue;  // those scroll by themselves
    const box = e.getBoundingClientRect();
    if (box.right > innerWidth + 0.5 || box.left < -0.5) found.wider.push(start(e));
    const words = [...e.childNodes].some(n => n.nodeType === Node.TEXT_NODE && n.data.trim());
    if (!words || e.closest("svg")) continue;
    if (parseFloat(getComputedStyle(e).fontSize) < 12) found.small.push(start(e));
    if (e.clientWidth && e.scrollWidth > e.clientWidth + 1) found.cut.push(start(e));
  }

  for (const svg of document.querySelectorAll("figure svg[role=img]")) {
    if (!seen(svg)) continue;
    found.drawings += 1;
    const title = svg.querySelector("title").textContent;
    const whole = svg.getBoundingClientRect();
    const scale = whole.width / svg.viewBox.baseVal.width;
    const texts = [...svg.querySelectorAll("text")];
    const boxes = texts.map(text => [text.textContent, text.getBoundingClientRect()]);
    found.texts += boxes.length;
    for (const text of texts) {
      if (scale * parseFloat(getComputedStyle(text).fontSize) < 12) found.small.push(title);
    }
    boxes.forEach(([words, box], place) => {
      const outside = box.left < whole.left - 1 || box.right > whole.right + 1 ||
        box.top < whole.top - 2 || box.bottom > whole.bottom + 2;
      if (outside) found.cut.push([title, words]);
      for (const [other, another] of boxes.slice(place + 1)) {
        const across = Math.min(box.right, another.right) - Math.max(box.left, another.left);
        const down = Math.min(box.bottom, another.bottom) - Math.max(box.top, another.top);
        if (across > 1 && down > 3) found.overlap.push([title, words, other]);
      }
    });
  }
  return found;
})()
