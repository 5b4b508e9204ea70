// The stand-in's client. As DCV's, it knows nothing of a prefix: every URL is relative to the page's own.
const by = id => document.getElementById(id);
const base = new URL('.', location.href);
const authToken = new URLSearchParams(location.search).get('authToken');
const screen = by('desktop');
const paint = screen.getContext('2d');

const NOTHING = 0, POINTER = 1, PRESS = 2, KEY = 3;
let session; // what is open now; replaced as a whole after a failure

function socketTo(path) {
  const url = new URL(path, base);
  url.protocol = url.protocol.replace('http', 'ws');
  const socket = new WebSocket(url, 'dcv');
  socket.binaryType = 'arraybuffer';
  return socket;
}

function authenticate() {
  return new Promise((done, failed) => {
    const socket = socketTo('auth');
    socket.onopen = () => socket.send(JSON.stringify({ token: authToken }));
    socket.onclose = event => failed(new Error(`/auth closed with ${event.code}`));
    socket.onmessage = event => {
      const answer = JSON.parse(event.data);
      answer.status === 'ok' ? done(answer) : failed(new Error(`/auth: ${answer.status}`));
    };
  });
}

class Session {
  constructor(granted) {
    Object.assign(this, granted);
    this.open = new Set();
    this.input = 0;
    this.inputSent = new Map();
    this.inputAt = 0;
    this.posts = 0;
    this.failures = 0;
    this.frames = [];
    this.trips = [];
    this.ways = [];
    this.sequence = 0;
    this.lost = 0;
    this.image = paint.createImageData(this.display.width, this.display.height);
    this.palette = colours(this.display.palette);
    this.sockets = Object.fromEntries(this.channels.map(name => [name, this.channel(name)]));
    this.timers = [
      setInterval(() => this.idle(), 137), // no multiple of a frame's time
      setInterval(() => this.post(), 3000),
      setInterval(() => this.show(), 250),
    ];
  }

  channel(name) {
    const socket = socketTo(`ws?token=${this.token}`);
    socket.onopen = () => socket.send(JSON.stringify({ channel: name, connection: this.connection }));
    socket.onclose = event => this.end(`${name} closed with ${event.code}`);
    socket.onmessage = event => this.receive(name, event.data);
    return socket;
  }

  receive(name, data) {
    if (data instanceof ArrayBuffer) return this.frame(data);
    const message = JSON.parse(data);
    if (message.opened) this.open.add(name);
    if (message.way) this.ways.push(performance.now() - message.way);
  }

  frame(data) {
    const head = new DataView(data);
    const [sequence, sent, input] = [0, 8, 16].map(at => Number(head.getBigUint64(at)));
    const pixels = new Uint8Array(data, this.display.header);
    const target = new Uint32Array(this.image.data.buffer);
    for (let i = 0; i < pixels.length; i++) target[i] = this.palette[pixels[i]];
    paint.putImageData(this.image, 0, 0);
    const now = performance.now();
    if (this.sequence) this.lost += sequence - this.sequence - 1;
    this.sequence = sequence;
    this.frames.push({ at: now, delay: now - sent / 1000, bytes: data.byteLength });
    for (const [number, at] of this.inputSent) {
      if (number > input) break;
      this.trips.push(now - at);
      this.inputSent.delete(number);
    }
  }

  send(kind, a = 0, b = 0) {
    const socket = this.sockets.input;
    if (!this.open.has('input') || socket.readyState !== WebSocket.OPEN) return;
    const event = new DataView(new ArrayBuffer(13));
    event.setBigUint64(0, BigInt(++this.input));
    event.setUint8(8, kind);
    event.setUint16(9, a);
    event.setUint16(11, b);
    this.inputAt = performance.now();
    this.inputSent.set(this.input, this.inputAt);
    socket.send(event);
  }

  // Without input nothing could be timed, so an event that changes nothing goes instead.
  idle() {
    const now = performance.now();
    if (now - this.inputAt > 110) this.send(NOTHING);
    if (this.open.has('main')) this.sockets.main.send(JSON.stringify({ way: now }));
  }

  async post() {
    const id = `cursor-${this.posts + this.failures}`;
    const url = new URL(`${this.resources}${id}?token=${this.token}`, base);
    try {
      const taken = await fetch(url, { method: 'POST', body: new Uint8Array(1024) });
      if (!taken.ok) throw new Error(`POST answered ${taken.status}`);
      const { taken: bytes } = await taken.json();
      if (bytes !== 1024) throw new Error(`POST arrived with ${bytes} of 1024 bytes`);
      const refused = await fetch(url, { method: 'DELETE' });
      if (!refused.ok) throw new Error(`DELETE answered ${refused.status}`);
      this.posts++;
    } catch (error) {
      this.failures++;
      by('failure').textContent = error.message;
    }
  }

  show() {
    const now = performance.now();
    this.frames = this.frames.filter(frame => now - frame.at < 2000);
    this.trips = this.trips.slice(-120);
    this.ways = this.ways.slice(-60);
    const span = this.frames.length > 1 ? this.frames.at(-1).at - this.frames[0].at : NaN;
    const best = Math.min(...this.frames.map(frame => frame.delay));
    put('fps', (this.frames.length - 1) / span * 1000, 0);
    put('rate', this.frames.slice(1).reduce((sum, frame) => sum + frame.bytes, 0) * 8 / span / 1000, 1);
    put('jitter', quantile(this.frames.map(frame => frame.delay - best), .95), 1);
    put('lost', this.lost, 0);
    put('trip', quantile(this.trips, .5), 1);
    put('trip-last', this.trips.at(-1), 1);
    put('trip-high', quantile(this.trips, .95), 1);
    put('way', quantile(this.ways, .5), 1);
    put('posts', this.posts, 0);
    put('failures', this.failures, 0);
    by('failures').classList.toggle('bad', this.failures > 0);
    put('channels', this.open.size, 0);
    by('channels-of').textContent = `of ${this.channels.length} open`;
    by('lights').replaceChildren(...this.channels.map(name => {
      const light = document.createElement('li');
      light.textContent = name;
      light.classList.toggle('open', this.open.has(name));
      return light;
    }));
    plot(this.trips);
    if (this.open.size === this.channels.length) say('live', 'good');
  }

  end(why) {
    if (session !== this) return;
    session = undefined;
    this.timers.forEach(clearInterval);
    Object.values(this.sockets).forEach(socket => socket.close());
    retry(why);
  }
}

function colours(palette) {
  const dot = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
  return Uint32Array.from(palette, colour => {
    dot.fillStyle = colour;
    dot.fillRect(0, 0, 1, 1);
    return new Uint32Array(dot.getImageData(0, 0, 1, 1).data.buffer)[0];
  });
}

function quantile(values, q) {
  return values.toSorted((a, b) => a - b)[Math.floor((values.length - 1) * q)];
}

function put(id, value, digits) {
  by(id).value = Number.isFinite(value) ? value.toFixed(digits) : '–';
}

function say(state, mood) {
  by('state').textContent = state;
  by('state').className = mood;
  screen.classList.toggle('stale', mood === 'bad');
}

// One bar for each of the last round trips, 50 ms high at least.
function plot(trips) {
  const canvas = by('trips'), bars = canvas.getContext('2d');
  const top = Math.max(50, ...trips), width = canvas.width / 120;
  bars.clearRect(0, 0, canvas.width, canvas.height);
  bars.fillStyle = getComputedStyle(document.documentElement).getPropertyValue('--accent');
  trips.forEach((trip, i) => {
    const height = Math.max(1, trip / top * canvas.height);
    bars.fillRect((120 - trips.length + i) * width, canvas.height - height, width - .5, height);
  });
}

function retry(why) {
  say(why, 'bad');
  setTimeout(connect, 1000);
}

async function connect() {
  try {
    const granted = await authenticate();
    document.title = by('name').textContent = granted.name;
    document.documentElement.style.setProperty('--hue', granted.display.hue);
    session = new Session(granted);
  } catch (error) {
    retry(error.message);
  }
}

function at(event) {
  const place = screen.getBoundingClientRect();
  const within = (share, size) => Math.max(0, Math.min(size - 1, Math.floor(share * size)));
  return [within((event.clientX - place.left) / place.width, screen.width), within((event.clientY - place.top) / place.height, screen.height)];
}

screen.addEventListener('pointermove', event => session?.send(POINTER, ...at(event)));
screen.addEventListener('pointerdown', event => session?.send(PRESS, ...at(event)));
addEventListener('keydown', event => {
  const code = { Enter: 10, Backspace: 8 }[event.key] ?? (event.key.length === 1 ? event.key.charCodeAt(0) : undefined);
  if (code === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  session?.send(KEY, code);
});

by('address').textContent = base.host + base.pathname;
connect();
