(() => {
  "use strict";
  const NUM_TAGS = 10;
  const TOKEN = "ast-ray-token";
  const page = Object.fromEntries([...document.querySelectorAll("[id]")].map((one) => [one.id, one]));
  const audio = page.audio;
  let model = null;
  let waiting = null;  // the recording that a token is asked for
  let request = null;  // the last one; an earlier one is given up

  const seconds = (value) => `${Number(value.toFixed(2))} s`;
  const length = (value) => value < 120 ? seconds(value) : `${Number((value / 60).toFixed(1))} minutes`;
  const score = (value) => value.toFixed(3);

  function element(name, text, attributes = {}) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  }

  function say(status, error = "") {
    page.status.textContent = status;
    page.error.textContent = error;
  }

  class Refusal extends Error {
    constructor(status, reason) {
      super(reason);
      this.status = status;
    }
  }

  async function ask(path, options = {}) {
    const token = sessionStorage.getItem(TOKEN);
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    let response;
    try {
      response = await fetch(path, { ...options, headers, credentials: "omit", cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refusal(0, "The server does not answer.");
    }
    if (response.ok) return response.json();
    const answer = await response.json().catch(() => ({}));
    throw new Refusal(response.status, answer.error ?? `The server answered with status ${response.status}.`);
  }

  function fail(error) {
    if (error.name === "AbortError") return;
    if (error.status === 401) {
      const isWrong = sessionStorage.getItem(TOKEN) !== null;
      sessionStorage.removeItem(TOKEN);
      page["token-form"].hidden = false;
      page.token.focus();
      say("", isWrong ? "That is not the token of this server." : "");
      return;
    }
    say("", error.message);
  }

  async function meet() {
    model = await ask("model");
    page["token-form"].hidden = true;
    const classes = `${model.labels.length.toLocaleString("en")} classes`;
    page.model.textContent = `${model.name}: ${classes}, windows of ${seconds(model.window_s)} every ${seconds(model.hop_s)}`;
    page.hint.textContent = `or drop one here, of up to ${model.max_mb} MB and ${length(model.max_duration_s)}`;
  }

  // One recording after the other: a Blob, and a name to show.
  async function tag(sound, name) {
    try {
      waiting = { sound, name };
      if (model === null) await meet();
      if (sound.size > model.max_mb * 1e6) throw new Refusal(413, `The file is larger than ${model.max_mb} MB.`);
      request?.abort();
      const mine = request = new AbortController();
      say(`Tagging ${name} …`);
      const path = `tag?top=${NUM_TAGS}&spectrogram=true`;
      const answer = await ask(path, { method: "POST", body: sound, signal: mine.signal });
      waiting = null;
      show(answer, sound, name);
      say(`Tagged ${name}: ${answer.max_labels[0]} ${score(answer.max_scores[0])}`);
    } catch (error) {
      if (error.status !== 401) waiting = null;
      fail(error);
    }
  }

  function show(answer, sound, name) {
    page.result.hidden = false;
    page.name.textContent = name;
    const num = answer.num_windows;
    const windows = `${num.toLocaleString("en")} ${num === 1 ? "window" : "windows"}`;
    page.facts.textContent = `${seconds(answer.duration_s)}, ${answer.file_rate_hz / 1000} kHz, ${windows}`;
    if (audio.src) URL.revokeObjectURL(audio.src);
    audio.hidden = false;
    audio.setAttribute("aria-label", `Sound of ${name}`);
    audio.src = URL.createObjectURL(sound);
    page.picture.src = answer.spectrogram;
    page.picture.alt = `Log-mel spectrogram of ${name}, ${seconds(answer.duration_s)}`;
    page.seconds.replaceChildren(...ticks(answer.duration_s));
    page.plot.dataset.duration = answer.duration_s;
    page.cursor.hidden = true;
    page.rows.replaceChildren(...answer.max_labels.map((label, i) => row(label, answer.max_scores[i], answer)));
    const means = new Map(answer.mean_labels.map((label, i) => [label, answer.mean_scores[i]]));
    page.tags.replaceChildren(...answer.max_labels.map((label, i) => {
      const mean = means.has(label) ? score(means.get(label)) : "";
      const line = element("tr");
      line.append(
        element("th", label, { scope: "row", class: "wrap" }),
        element("td", score(answer.max_scores[i]), { class: "n" }),
        element("td", mean, { class: "n" }),
      );
      return line;
    }));
    page.windows.replaceChildren(...answer.windows.map((window) => {
      const line = element("tr");
      const tags = element("td", undefined, { class: "wrap chips" });
      window.labels.slice(0, 3).forEach((label, i) => {
        tags.append(element("span", `${label} ${score(window.scores[i])}`), " ");
      });
      line.append(
        element("td", seconds(window.start_s), { class: "n" }),
        element("td", seconds(window.end_s), { class: "n" }),
        tags,
      );
      return line;
    }));
    page.name.focus({ preventScroll: true });
    page.result.scrollIntoView({ block: "nearest" });
  }

  function ticks(duration) {
    const steps = [-3, -2, -1, 0, 1, 2, 3, 4].flatMap((power) => [1, 2, 5].map((digit) => digit * 10 ** power));
    const most = innerWidth > 600 ? 8 : 5;
    const step = steps.find((one) => duration / one <= most) ?? steps.at(-1);
    const num = Math.floor(duration / step + 1e-9);
    return Array.from({ length: num + 1 }, (_, i) => {
      const tick = element("span", `${Number((i * step).toPrecision(6))}${i === num ? " s" : ""}`);
      const place = 100 * i * step / duration;
      tick.style.left = `${place}%`;
      if (place > 95) tick.className = "end";
      return tick;
    });
  }

  // Name, steps over time and highest score of a class.
  function row(label, highest, answer) {
    const windows = answer.windows;
    const x = (time) => (1000 * time / answer.duration_s).toFixed(2);
    let path = "M0 100";
    windows.forEach((window, i) => {
      const place = window.labels.indexOf(label);
      const height = place < 0 ? 0 : window.scores[place];
      const end = windows[i + 1]?.start_s ?? answer.duration_s;
      path += `V${(100 - 100 * height).toFixed(2)}H${x(end)}`;
    });
    const drawing = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    drawing.setAttribute("viewBox", "0 0 1000 100");
    drawing.setAttribute("preserveAspectRatio", "none");
    drawing.setAttribute("role", "img");
    drawing.setAttribute("aria-label", `${label} over time, ${peak(label, highest, windows)}`);
    const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
    line.setAttribute("d", `${path}V100Z`);
    drawing.append(line);
    const track = element("div", undefined, { class: "track" });
    track.append(drawing);
    const made = element("div", undefined, { class: "row" });
    made.append(
      element("div", label, { class: "name" }), element("div", score(highest), { class: "score" }), track,
    );
    return made;
  }

  function peak(label, highest, windows) {
    const top = windows.find((window) => window.scores[window.labels.indexOf(label)] === highest);
    return top ? `highest ${score(highest)} from ${seconds(top.start_s)} to ${seconds(top.end_s)}` : score(highest);
  }

  // A line at the place that is heard; a click goes to another.
  function follow() {
    const duration = Number(page.plot.dataset.duration);
    page.cursor.hidden = false;
    page.cursor.style.left = `${Math.min(100, 100 * audio.currentTime / duration)}%`;
    if (!audio.paused) requestAnimationFrame(follow);
  }
  audio.addEventListener("play", follow);
  audio.addEventListener("seeked", follow);
  audio.addEventListener("error", () => { audio.hidden = true; });
  page.plot.addEventListener("click", (event) => {
    const box = page.plot.getBoundingClientRect();
    audio.currentTime = (event.clientX - box.left) / box.width * Number(page.plot.dataset.duration);
  });

  page.file.addEventListener("change", () => {
    const file = page.file.files[0];
    page.file.value = "";  // the same file may be chosen again
    if (file) tag(file, file.name);
  });

  addEventListener("dragover", (event) => {
    event.preventDefault();
    page.drop.classList.add("over");
  });
  addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) page.drop.classList.remove("over");
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    page.drop.classList.remove("over");
    const file = event.dataTransfer.files[0];
    if (file) tag(file, file.name);
  });

  page["token-form"].addEventListener("submit", async (event) => {
    event.preventDefault();
    sessionStorage.setItem(TOKEN, page.token.value.trim());
    page.token.value = "";
    say("");
    try {
      await meet();
      if (waiting) await tag(waiting.sound, waiting.name);
    } catch (error) {
      fail(error);
    }
  });

  // Microphone.
  let recorder = null;

  async function record() {
    // What browsers do for calls takes sounds that are no speech away.
    const raw = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    const stream = await navigator.mediaDevices.getUserMedia({ audio: raw });
    const parts = [];
    recorder = new MediaRecorder(stream);
    recorder.addEventListener("dataavailable", (event) => parts.push(event.data));
    const stopMeter = meter(stream);
    recorder.addEventListener("stop", () => {
      const kind = recorder.mimeType;
      stopMeter();
      stream.getTracks().forEach((track) => track.stop());
      recorder = null;
      tag(new Blob(parts, { type: kind }), "Recording");
    });
    recorder.start();
  }

  // Time and level, until the function that it returns is called.
  function meter(stream) {
    const context = new AudioContext();
    const analyser = context.createAnalyser();
    context.createMediaStreamSource(stream).connect(analyser);
    const samples = new Float32Array(analyser.fftSize);
    const began = performance.now();
    const bar = page.level.firstElementChild;
    page.record.classList.add("on");
    page.record.textContent = "Stop";
    page.level.hidden = page.taken.hidden = false;
    say("Recording …");
    const timer = setInterval(() => {
      analyser.getFloatTimeDomainData(samples);
      const loudest = samples.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
      bar.style.transform = `scaleX(${Math.min(1, Math.sqrt(loudest))})`;
      const taken = (performance.now() - began) / 1000;
      page.taken.textContent = `${Math.floor(taken / 60)}:${String(Math.floor(taken % 60)).padStart(2, "0")}`;
      if (model !== null && taken > model.max_duration_s - 1) recorder?.stop();
    }, 100);
    return () => {
      clearInterval(timer);
      context.close();
      page.level.hidden = page.taken.hidden = true;
      page.record.classList.remove("on");
      page.record.textContent = "Record";
    };
  }

  if (navigator.mediaDevices === undefined) {
    page.record.disabled = true;
    page.record.title = "Browsers record only on pages from https:// or localhost";
  }
  page.record.addEventListener("click", () => {
    if (recorder !== null) {
      recorder.stop();
      return;
    }
    page.record.disabled = true;
    record()
      .catch((error) => say("", `The microphone cannot be used (${error.message}).`))
      .finally(() => { page.record.disabled = false; });
  });

  meet().catch(fail);
})();
