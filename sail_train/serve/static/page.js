// A conversation with the model: images in, the thought folded, the answer as it is written.
// What a model says is text and nothing else: it enters the page through textContent alone.
"use strict";

const find = (id) => document.getElementById(id);
const talk = find("talk"), form = find("ask"), question = find("question"), send = find("send");
const TYPES = ["image/png", "image/jpeg", "image/webp"];

let limits = { max_images: 16, max_tokens: 2048, max_body: 32 * 2 ** 20 };
let messages = []; // what the server is sent: it keeps nothing
let pictures = []; // {url, name}: chosen for the next question
let running = null; // the AbortController of the answer being written

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// Images

function read(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name} cannot be read`));
    reader.readAsDataURL(file);
  });
}

async function add(files) {
  const sent = messages.flatMap((message) => message.content).filter((part) => part.type === "image_url").length;
  for (const file of files) {
    try {
      if (!TYPES.includes(file.type)) throw new Error(`${file.name} is no PNG, JPEG or WebP image`);
      if (file.size * 1.4 > limits.max_body) throw new Error(`${file.name} is too large to send`);
      const url = await read(file); // others may have been added meanwhile, so they are counted afterwards
      if (sent + pictures.length >= limits.max_images) throw new Error(`A conversation has at most ${limits.max_images} images`);
      pictures.push({ url, name: file.name });
    } catch (error) {
      complain(error.message);
    }
  }
  showPictures();
  question.focus();
}

function showPictures() {
  find("pictures").replaceChildren(...pictures.map((picture) => {
    const item = element("li"), image = element("img"), remove = element("button", "", "\u00d7");
    image.src = picture.url;
    image.alt = picture.name;
    remove.type = "button";
    remove.setAttribute("aria-label", `Remove ${picture.name}`);
    remove.addEventListener("click", () => {
      pictures = pictures.filter((other) => other !== picture);
      showPictures();
    });
    item.append(image, remove);
    return item;
  }));
  update();
}

// What is shown

function update() {
  send.textContent = running ? "Stop" : "Ask";
  send.classList.toggle("stop", Boolean(running));
  send.disabled = !running && !question.value.trim() && !pictures.length;
  find("new").disabled = !talk.querySelector(".user, .model") && !running;
  find("welcome").hidden = Boolean(talk.querySelector(".user, .model"));
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight}px`;
}

function show(node) {
  const near = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 120;
  node();
  if (near) talk.scrollTop = talk.scrollHeight;
}

function showQuestion(message) {
  const turn = element("section", "user"), images = element("div", "images");
  for (const part of message.content) {
    if (part.type === "text") continue;
    const image = element("img");
    image.src = part.image_url.url;
    image.alt = "An image of the question";
    image.addEventListener("load", () => { talk.scrollTop = talk.scrollHeight; });
    images.append(image);
  }
  if (images.childElementCount) turn.append(images);
  for (const part of message.content) if (part.type === "text") turn.append(element("div", "text", part.text));
  talk.append(turn);
  talk.scrollTop = talk.scrollHeight;
}

function complain(text, retry) {
  const turn = element("section", "model"), error = element("div", "error", text);
  error.setAttribute("role", "alert");
  if (retry) {
    const again = element("button", "", "Try again");
    again.type = "button";
    again.addEventListener("click", () => { if (!running) { turn.remove(); retry(); } });
    error.append(again);
  }
  turn.append(error);
  talk.append(turn);
  talk.scrollTop = talk.scrollHeight;
  update();
}

// An answer as it is shown: a thought, folded, once there is one; the text; a note at its end.
class Answer {
  constructor() {
    this.thought = "";
    this.text = "";
    this.turn = element("section", "model busy");
    this.waiting = element("div", "waiting", "\u2026");
    this.body = element("div", "text answer");
    this.turn.append(this.waiting, this.body);
    talk.append(this.turn);
    talk.scrollTop = talk.scrollHeight;
  }

  add(delta) {
    show(() => {
      if (delta.reasoning_content) this.addThought(delta.reasoning_content);
      if (delta.content) {
        this.waiting.remove();
        this.fold("Thought");
        this.text += delta.content;
        this.body.textContent = this.text;
      }
    });
  }

  addThought(text) {
    if (!this.details) {
      this.waiting.remove();
      this.begun = performance.now();
      this.details = element("details", "thought");
      this.summary = element("summary", "", "Thinking\u2026");
      this.thoughtText = element("div", "text");
      this.details.append(this.summary, this.thoughtText);
      this.turn.prepend(this.details);
    }
    this.thought += text;
    this.thoughtText.textContent = this.thought;
  }

  fold(verb) {
    if (!this.details || this.folded) return;
    this.folded = true;
    this.turn.classList.remove("busy");
    const seconds = (performance.now() - this.begun) / 1000;
    this.summary.textContent = `${verb} for ${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  }

  end(note) {
    this.waiting.remove();
    this.turn.classList.remove("busy");
    this.fold(this.text ? "Thought" : "Was thinking");
    if (note) show(() => this.turn.append(element("div", "note", note)));
  }
}

// Asking

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (held + value).split("\n\n");
    held = lines.pop();
    for (const line of lines) {
      if (line === "data: [DONE]") return;
      const event = JSON.parse(line.slice("data: ".length));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

async function request(signal) {
  const body = {
    messages,
    stream: true,
    stream_options: { include_usage: true },
    temperature: Number(find("temperature").value),
    max_tokens: Number(find("max-tokens").value) || undefined,
    think: form.elements.think.value,
  };
  const response = await fetch("/v1/chat/completions", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
  });
  if (!response.ok) {
    const told = await response.json().catch(() => null);
    throw new Error(told?.error?.message ?? `The server answered ${response.status}`);
  }
  return response;
}

async function ask(message) {
  const own = running = new AbortController();
  showQuestionOnce(message);
  messages.push(message);
  const answer = new Answer();
  update();
  let note = "", finish = null;
  try {
    for await (const event of events(await request(own.signal))) {
      for (const choice of event.choices) {
        answer.add(choice.delta);
        finish = choice.finish_reason ?? finish;
      }
      if (event.usage) note = `${event.usage.completion_tokens} tokens`;
    }
    if (!finish) throw new Error("The answer broke off");
    answer.end(finish === "length" ? `${note}: cut at the limit` : note);
  } catch (error) {
    if (own.discarded) return;
    answer.end(own.signal.aborted ? "Stopped" : "");
    if (!own.signal.aborted) {
      // A question without an answer is no part of the conversation.
      messages = messages.filter((other) => other !== message);
      if (!answer.text && !answer.thought) answer.turn.remove();
      complain(error instanceof TypeError ? "The server cannot be reached" : error.message, () => ask(message));
      return;
    }
  } finally {
    if (running === own) running = null;
    update();
  }
  // A thought is no part of it either: the model is not shown those of earlier turns.
  messages.push({ role: "assistant", content: answer.text });
}

const shown = new WeakSet();
function showQuestionOnce(message) {
  if (!shown.has(message)) showQuestion(message);
  shown.add(message);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) return running.abort();
  const text = question.value.trim();
  if (!text && !pictures.length) return;
  const content = pictures.map((picture) => ({ type: "image_url", image_url: { url: picture.url } }));
  if (text) content.push({ type: "text", text });
  question.value = "";
  pictures = [];
  showPictures();
  ask({ role: "user", content });
});

question.addEventListener("input", update);
question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!running) form.requestSubmit();
  }
});

find("new").addEventListener("click", () => {
  if (running) {
    running.discarded = true;
    running.abort();
    running = null;
  }
  messages = [];
  pictures = [];
  for (const turn of talk.querySelectorAll("section")) turn.remove();
  showPictures();
  question.focus();
});

// Choosing, pasting, dropping

for (const id of ["choose", "choose-first"]) find(id).addEventListener("click", () => find("file").click());
find("file").addEventListener("change", (event) => {
  add([...event.target.files]);
  event.target.value = "";
});
document.addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (files.length) {
    event.preventDefault();
    add(files);
  }
});
let depth = 0; // of elements of the page that the dragged file is within
const dragsFiles = (event) => event.dataTransfer?.types.includes("Files");
document.addEventListener("dragenter", (event) => { if (dragsFiles(event)) find("drop").hidden = ++depth < 1; });
document.addEventListener("dragleave", (event) => { if (dragsFiles(event)) find("drop").hidden = --depth < 1; });
document.addEventListener("dragover", (event) => { if (dragsFiles(event)) event.preventDefault(); });
document.addEventListener("drop", (event) => {
  if (!dragsFiles(event)) return;
  event.preventDefault();
  depth = 0;
  find("drop").hidden = true;
  add([...event.dataTransfer.files]);
});

// Settings, and what is served

const temperature = find("temperature");
temperature.addEventListener("input", () => { find("temperature-shown").textContent = temperature.value; });
document.addEventListener("click", (event) => {
  if (!find("settings").contains(event.target)) find("settings").open = false;
});

async function start() {
  update();
  try {
    const listed = await (await fetch("/v1/models")).json();
    limits = listed.data[0];
    find("model").textContent = limits.id;
    document.title = `${limits.id} \u00b7 sail_train`;
    find("max-tokens").max = limits.max_tokens;
    find("max-tokens").placeholder = limits.max_tokens;
  } catch {
    complain("The server cannot be reached");
  }
}
start();
