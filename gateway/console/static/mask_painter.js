// A mask for the first input image: what is painted becomes transparent in a PNG of its size.

const KEY_STEP = 0.5;
const COLOUR = "#e5254b";
const MAX_DISPLAY = 720;

// Paints on `paint`, over the image on `image`. `changed(blob)` gets the mask, or null where
// nothing is painted.
export class MaskPainter {
  constructor(place, changed) {
    this.place = place;
    this.changed = changed;
    this.image = place.querySelector("#painter-image");
    this.paint = place.querySelector("#painter-paint");
    this.brush = place.querySelector("#brush");
    this.state = place.querySelector("#painter-state");
    this.strokes = [];
    this.stroke = null;
    this.cursor = null;
    this.erases = false;
    this.exported = Promise.resolve();
    this.version = 0;
    this.listen();
  }

  // Show an image; what was painted over another one is dropped.
  async load(source) {
    if (source === this.source) return;
    this.source = source;
    const found = new Image();
    found.src = source;
    await found.decode();
    if (source !== this.source) return;
    const scale = Math.min(1, MAX_DISPLAY / found.naturalWidth);
    this.image.width = Math.round(found.naturalWidth * scale);
    this.image.height = Math.round(found.naturalHeight * scale);
    this.image.getContext("2d").drawImage(found, 0, 0, this.image.width, this.image.height);
    this.paint.width = found.naturalWidth;
    this.paint.height = found.naturalHeight;
    this.brush.max = String(Math.max(16, Math.round(found.naturalWidth / 4)));
    this.brush.value = String(Math.max(8, Math.round(found.naturalWidth / 16)));
    this.cursor = { x: found.naturalWidth / 2, y: found.naturalHeight / 2 };
    this.strokes = [];
    this.place.hidden = false;
    this.draw();
    this.finish();
  }

  hide() {
    this.source = null;
    this.version += 1;
    this.strokes = [];
    this.place.hidden = true;
    this.changed(null);
  }

  listen() {
    this.paint.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      event.preventDefault();
      this.paint.focus();
      this.paint.setPointerCapture(event.pointerId);
      this.begin(this.pointOf(event));
    });
    this.paint.addEventListener("pointermove", (event) => {
      if (!this.stroke) return;
      for (const one of event.getCoalescedEvents?.() ?? [event]) {
        this.stroke.points.push(this.pointOf(one));
      }
      this.draw();
    });
    for (const name of ["pointerup", "pointercancel"]) {
      this.paint.addEventListener(name, () => this.end());
    }
    this.paint.addEventListener("keydown", (event) => this.key(event));
    this.paint.addEventListener("focus", () => this.draw());
    this.paint.addEventListener("blur", () => this.draw());
    this.place.addEventListener("click", (event) => {
      const tool = event.target.closest("[data-tool]")?.dataset.tool;
      if (tool === "erase") this.toggleErase(event.target.closest("[data-tool]"));
      if (tool === "undo") this.strokes.pop();
      if (tool === "clear") this.strokes = [];
      if (tool === "undo" || tool === "clear") {
        this.draw();
        this.finish();
      }
    });
  }

  toggleErase(button) {
    this.erases = !this.erases;
    button.setAttribute("aria-pressed", String(this.erases));
  }

  key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const move = moves[event.key];
    if (move) {
      const step = Number(this.brush.value) * KEY_STEP;
      this.cursor.x = Math.max(0, Math.min(this.paint.width, this.cursor.x + move[0] * step));
      this.cursor.y = Math.max(0, Math.min(this.paint.height, this.cursor.y + move[1] * step));
      this.draw();
    } else if (event.key === " " || event.key === "Enter") {
      this.begin({ ...this.cursor });
      this.end();
    } else if (event.key === "z" && (event.ctrlKey || event.metaKey)) {
      this.strokes.pop();
      this.draw();
      this.finish();
    } else {
      return;
    }
    event.preventDefault();
  }

  pointOf(event) {
    const box = this.paint.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) * this.paint.width) / box.width,
      y: ((event.clientY - box.top) * this.paint.height) / box.height,
    };
  }

  begin(point) {
    this.stroke = { size: Number(this.brush.value), erases: this.erases, points: [point] };
    this.strokes.push(this.stroke);
    this.draw();
  }

  end() {
    if (!this.stroke) return;
    this.cursor = { ...this.stroke.points.at(-1) };
    this.stroke = null;
    this.draw();
    this.finish();
  }

  draw() {
    const context = this.paint.getContext("2d");
    context.clearRect(0, 0, this.paint.width, this.paint.height);
    this.drawStrokes(context);
    if (document.activeElement === this.paint && this.paint.matches(":focus-visible")) {
      context.globalCompositeOperation = "source-over";
      context.strokeStyle = "#ffffff";
      context.lineWidth = Math.max(2, this.paint.width / 400);
      context.beginPath();
      context.arc(this.cursor.x, this.cursor.y, Number(this.brush.value) / 2, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  drawStrokes(context) {
    context.lineCap = "round";
    context.lineJoin = "round";
    context.strokeStyle = COLOUR;
    for (const stroke of this.strokes) {
      context.globalCompositeOperation = stroke.erases ? "destination-out" : "source-over";
      context.lineWidth = stroke.size;
      context.beginPath();
      const [first, ...rest] = stroke.points;
      context.moveTo(first.x, first.y);
      // A line of no length is a dot.
      context.lineTo(first.x, first.y);
      for (const point of rest) context.lineTo(point.x, point.y);
      context.stroke();
    }
  }

  // Export the mask: opaque, but transparent where it was painted.
  finish() {
    const version = ++this.version;
    const painted = this.strokes.some((stroke) => !stroke.erases);
    this.state.textContent = painted ? "The painted area is changed." : "Nothing is painted.";
    if (!painted) {
      this.exported = Promise.resolve();
      this.changed(null);
      return;
    }
    const strokes = document.createElement("canvas");
    const mask = document.createElement("canvas");
    for (const one of [strokes, mask]) {
      one.width = this.paint.width;
      one.height = this.paint.height;
    }
    this.drawStrokes(strokes.getContext("2d"));
    const context = mask.getContext("2d");
    context.fillRect(0, 0, mask.width, mask.height);
    context.globalCompositeOperation = "destination-out";
    context.drawImage(strokes, 0, 0);
    this.exported = new Promise((resolve) => {
      mask.toBlob((blob) => {
        // It may have been painted on, or undone, while this one was encoded.
        if (version === this.version) this.changed(blob);
        resolve();
      }, "image/png");
    });
  }
}
