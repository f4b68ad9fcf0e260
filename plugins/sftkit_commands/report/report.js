(() => {
  "use strict";
  const root = document.documentElement;
  const data = JSON.parse(document.getElementById("chart-data").textContent);
  const drawn = (window.sftkitCharts = {});
  const colours = 7;
  const dashes = [[], [7, 4], [2, 3], [10, 3, 2, 3]];

  const style = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const plain = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
  const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
  const show = (value) => {
    if (value === null || value === undefined) return "";
    const size = Math.abs(value);
    if (size && size < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e");
    return size >= 1e4 ? whole.format(value) : plain.format(value);
  };
  const tick = (value) => {
    const size = Math.abs(value);
    if (size >= 1e6) return plain.format(value / 1e6) + "M";
    return size >= 1e4 ? plain.format(value / 1e3) + "k" : plain.format(value);
  };
  const ticks = (values) => {
    const tiny = values.some((value) => value && Math.abs(value) < 1e-3);
    return values.map((value) => (tiny && value ? Number(value.toPrecision(3)).toExponential() : tick(value)));
  };
  const alpha = (colour, part) => {
    const parts = colour.match(/[0-9a-f]{2}/gi).map((pair) => parseInt(pair, 16));
    return `rgba(${parts.join(",")},${part})`;
  };

  const seriesOf = (one, values) => {
    const colour = style(`--c${one.colour % colours}`);
    const known = values.reduce((sum, value) => sum + (value !== null), 0);
    const few = known <= (one.style === "points" ? 60 : 12);
    const faint = one.style === "faint";
    return {
      label: one.label,
      stroke: faint ? alpha(colour, 0.5) : colour,
      width: known > 800 ? 1 : faint ? 1.25 : 2,
      dash: dashes[Math.floor(one.colour / colours) % dashes.length],
      spanGaps: true,
      points: { show: few && !faint, size: one.style === "points" ? 7 : 5, fill: style("--card"), stroke: colour, width: 2 },
      value: (_, value) => show(value),
    };
  };

  const width = (text) => 7 * Math.max(0, ...text.map((value) => String(value).length)) + 14;

  const mark = (chart) => (u) => {
    const context = u.ctx;
    context.save();
    context.strokeStyle = style("--dim");
    context.lineWidth = devicePixelRatio;
    context.setLineDash([5 * devicePixelRatio, 4 * devicePixelRatio]);
    for (const step of chart.resumed) {
      const x = Math.round(u.valToPos(step, "x", true));
      if (x < u.bbox.left || x > u.bbox.left + u.bbox.width) continue;
      context.beginPath();
      context.moveTo(x, u.bbox.top);
      context.lineTo(x, u.bbox.top + u.bbox.height);
      context.stroke();
    }
    context.restore();
  };

  const fromZero = new Set(["tokens/s", "GB"]);

  const last = Math.max(1, ...data.map((chart) => chart.steps[chart.steps.length - 1]));
  const isWhole = (u, low, high) => u.data[0].length < 2 || (low === u.data[0][0] && high === u.data[0][u.data[0].length - 1]);

  const draw = (chart) => {
    const place = document.getElementById(`plot-${chart.name}`);
    place.classList.add("idle");
    if (drawn[chart.name]) drawn[chart.name].destroy();
    const axis = { stroke: style("--dim"), font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif", labelSize: 18 };
    const grid = { stroke: style("--line"), width: 1 };
    const marks = { stroke: style("--line"), width: 1, size: 4 };
    const scale = fromZero.has(chart.unit) ? { range: (_, low, high) => [0, high > 0 ? high * 1.08 : 1] } : {};
    drawn[chart.name] = new uPlot(
      {
        width: Math.max(place.clientWidth, 200),
        height: 270,
        padding: [10, 14, 0, 0],
        scales: { x: { time: false, range: (u, low, high) => (isWhole(u, low, high) ? [0, last] : [low, high]) }, y: scale },
        axes: [
          { ...axis, grid, ticks: marks, label: "step", space: 60, size: 30, values: (_, all) => all.map((at) => (Number.isInteger(at) ? tick(at) : "")) },
          { ...axis, grid, ticks: marks, label: chart.unit || undefined, values: (_, all) => ticks(all), size: (_, all) => width(all || []), gap: 4 },
        ],
        series: [{ label: "step", value: (_, at) => (at === null || at === undefined ? "" : whole.format(at)) }, ...chart.series.map((one, at) => seriesOf(one, chart.values[at]))],
        cursor: { sync: { key: "steps", setSeries: false }, points: { size: 8 } },
        legend: { markers: { width: 0, fill: (u, at) => (at ? u.series[at]._stroke || u.series[at].stroke() : "transparent") } },
        hooks: {
          draw: [mark(chart)],
          setCursor: [(u) => place.classList.toggle("idle", u.cursor.idx === null || u.cursor.idx === undefined)],
        },
      },
      [chart.steps, ...chart.values],
      place,
    );
  };

  const drawAll = () => data.forEach(draw);
  const resize = () => {
    for (const chart of data) {
      const place = document.getElementById(`plot-${chart.name}`);
      const u = drawn[chart.name];
      if (u && Math.abs(u.width - place.clientWidth) > 1) u.setSize({ width: Math.max(place.clientWidth, 200), height: 270 });
    }
  };

  const system = matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const label = () => (button.textContent = isDark() ? "Light theme" : "Dark theme");
  const stored = (value) => {
    try {
      return value ? localStorage.setItem("sftkit-theme", value) : localStorage.getItem("sftkit-theme");
    } catch {
      return null; // storage is forbidden for this page
    }
  };
  const before = stored();
  if (before === "dark" || before === "light") root.dataset.theme = before;
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    stored(root.dataset.theme);
    label();
    drawAll();
  });
  system.addEventListener("change", () => {
    label();
    drawAll();
  });
  label();
  drawAll();
  new ResizeObserver(resize).observe(document.querySelector("main"));

  let screen = null;
  addEventListener("beforeprint", () => {
    screen = root.dataset.theme || "";
    root.dataset.theme = "light";
    drawAll();
    for (const u of Object.values(drawn)) u.setSize({ width: 620, height: 240 });
  });
  addEventListener("afterprint", () => {
    if (screen) root.dataset.theme = screen;
    else delete root.dataset.theme;
    drawAll();
  });
})();
