(() => {
  "use strict";
  const clock = (time) => {
    const tenths = Math.round(time * 10);
    const [hours, minutes, seconds] = [Math.floor(tenths / 36000), Math.floor(tenths / 600) % 60, tenths % 600 / 10];
    const two = (value, digits) => value.toFixed(digits).padStart(digits ? 4 : 2, "0");
    return hours ? `${hours}:${two(minutes, 0)}:${two(seconds, 1)}` : `${minutes}:${two(seconds, 1)}`;
  };
  const shown = (score) => score < 0 ? "is no tag" : score.toFixed(2);

  class Timeline {
    constructor(box) {
      this.box = box;
      this.card = box.closest(".recording");
      this.tracks = box.querySelector(".tracks");
      this.canvas = box.querySelector("canvas");
      this.cursor = box.querySelector(".cursor");
      this.names = [...box.querySelectorAll(".row")];
      this.readout = this.card.querySelector(".readout");
      this.audio = this.card.querySelector("audio");
      this.edges = box.dataset.edges.split(",").map(Number);
      // Two hexadecimal digits a cell: 0 is no tag, 1 to 255 are scores from 0 to 1.
      this.scores = (box.dataset.cells ? box.dataset.cells.split(",") : []).map((row) =>
        row.match(/../g).map((digits) => (parseInt(digits, 16) - 1) / 254));
      [this.start, this.end] = [this.edges[0], this.edges[this.edges.length - 1]];
      this.soundStart = Number(box.dataset.soundStart);
      this.place = { cell: 0, row: -1 };
      this.isStale = true;
      this.listen();
    }

    // The cells, as strong as their scores; canvases off the screen wait.
    draw() {
      this.isStale = false;
      const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight];
      if (!width || !height) return;
      const scale = window.devicePixelRatio || 1;
      [this.canvas.width, this.canvas.height] = [Math.round(width * scale), Math.round(height * scale)];
      const style = getComputedStyle(document.documentElement);
      const pen = this.canvas.getContext("2d");
      pen.scale(scale, scale);
      const rowHeight = height / this.scores.length;
      this.scores.forEach((scores, row) => {
        const top = row * rowHeight + 1.5;
        pen.globalAlpha = 1;
        pen.fillStyle = style.getPropertyValue("--track");
        pen.fillRect(0, top, width, rowHeight - 3);
        pen.fillStyle = style.getPropertyValue("--tag");
        scores.forEach((score, cell) => {
          if (score <= 0) return;
          const [left, right] = [this.edges[cell], this.edges[cell + 1]].map((time) => Math.round(this.share(time) * width * scale) / scale);
          pen.globalAlpha = score;
          pen.fillRect(left, top, Math.max(right - left, 0.5), rowHeight - 3);
        });
      });
    }

    share(time) { return (time - this.start) / (this.end - this.start || 1); }

    timeAt(event) {
      const box = this.tracks.getBoundingClientRect();
      const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
      return this.start + share * (this.end - this.start);
    }

    rowAt(event) {
      const box = this.canvas.getBoundingClientRect();
      if (event.clientY < box.top || !this.scores.length) return -1;
      return Math.min(this.scores.length - 1, Math.floor((event.clientY - box.top) / box.height * this.scores.length));
    }

    cellAt(time) {
      let [low, high] = [0, this.edges.length - 2];
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (this.edges[middle] <= time) low = middle; else high = middle - 1;
      }
      return low;
    }

    // Shows a time and the scores there: of one class, or of all from the highest on.
    show(time, row) {
      const cell = this.cellAt(time);
      this.place = { cell, row };
      this.time = time;
      this.box.classList.add("placed");
      this.cursor.style.left = `${100 * this.share(time)}%`;
      this.names.forEach((name, number) => name.classList.toggle("at", number === row));
      const labelled = this.scores.map((scores, number) => [this.names[number].textContent, scores[cell]]);
      const wanted = row >= 0 ? [labelled[row]]
        : labelled.filter(([, score]) => score >= 0).sort((a, b) => b[1] - a[1]).slice(0, 4);
      const bold = document.createElement("b");
      bold.textContent = clock(time);
      const texts = wanted.map(([label, score]) => `${label} ${shown(score)}`);
      this.readout.replaceChildren(bold, ` ${texts.length ? texts.join(" · ") : "no tag"}`);
      this.box.setAttribute("aria-valuenow", time.toFixed(2));
      this.box.setAttribute("aria-valuetext", this.readout.textContent);
    }

    play(time) {
      const audio = this.audio;
      if (!audio) return;
      document.querySelectorAll("audio").forEach((other) => { if (other !== audio) other.pause(); });
      const seek = () => {
        audio.currentTime = Math.max(0, time - this.start + this.soundStart);
        // A sound that cannot be fetched says so in its player.
        audio.play().catch(() => {});
      };
      if (audio.readyState >= 1) { seek(); return; }
      audio.addEventListener("loadedmetadata", seek, { once: true });
      audio.load();
    }

    listen() {
      const { box, tracks, audio } = this;
      tracks.addEventListener("pointermove", (event) => this.show(this.timeAt(event), this.rowAt(event)));
      tracks.addEventListener("click", (event) => {
        const time = this.timeAt(event);
        this.show(time, this.rowAt(event));
        this.play(time);
      });
      box.addEventListener("focus", () => {
        if (this.time === undefined) this.show(this.start, this.place.row);
      });
      box.addEventListener("keydown", (event) => this.key(event));
      if (audio) {
        audio.addEventListener("timeupdate", () => {
          if (audio.paused && !audio.currentTime) return;
          const time = Math.min(this.end, audio.currentTime - this.soundStart + this.start);
          if (time >= this.start) this.show(time, this.place.row);
        });
        audio.addEventListener("play", () => document.querySelectorAll("audio").forEach((other) => {
          if (other !== audio) other.pause();
        }));
      }
    }

    key(event) {
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      const { cell, row } = this.place;
      const last = this.edges.length - 2;
      const moves = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -cell, End: last - cell };
      if (event.key in moves) {
        const next = Math.min(last, Math.max(0, cell + moves[event.key]));
        this.show((this.edges[next] + this.edges[next + 1]) / 2, row);
      } else if (event.key === "ArrowUp" || event.key === "ArrowDown") {
        const next = row + (event.key === "ArrowUp" ? -1 : 1);
        this.show(this.time ?? this.start, Math.min(this.scores.length - 1, Math.max(-1, next)));
      } else if (event.key === "Enter") {
        this.play(this.time ?? this.start);
      } else if (event.key === " " && this.audio) {
        if (this.audio.paused) this.play(this.time ?? this.start); else this.audio.pause();
      } else return;
      event.preventDefault();
    }
  }

  const timelines = new Map([...document.querySelectorAll(".timeline")].map((box) => [box, new Timeline(box)]));
  const isNear = new Set();
  const watcher = new IntersectionObserver((entries) => entries.forEach((entry) => {
    const timeline = timelines.get(entry.target);
    if (!entry.isIntersecting) { isNear.delete(timeline); return; }
    isNear.add(timeline);
    if (timeline.isStale) timeline.draw();
  }), { rootMargin: "600px" });
  const redraw = (chosen) => {
    timelines.forEach((timeline) => { timeline.isStale = true; });
    chosen.forEach((timeline) => timeline.draw());
  };
  timelines.forEach((_, box) => watcher.observe(box));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw(isNear));
  addEventListener("resize", () => redraw(isNear));
  addEventListener("beforeprint", () => redraw(timelines));

  const filter = document.getElementById("filter");
  filter?.addEventListener("input", () => {
    const wanted = filter.value.trim().toLowerCase();
    let num = 0;
    timelines.forEach((timeline) => {
      const words = [timeline.card.querySelector(".name"), ...timeline.names].map((part) => part.textContent.toLowerCase());
      timeline.card.hidden = !words.some((text) => text.includes(wanted));
      num += !timeline.card.hidden;
    });
    document.getElementById("matches").textContent = wanted ? `${num} of ${timelines.size}` : "";
  });
})();
