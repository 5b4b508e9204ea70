//! The picture of a desktop: palette indices, drawn anew for each frame, with the client's input in it.
//!
//! A frame is, in network order: sequence number (u64), the agent's clock in microseconds (u64), the sequence number of
//! the last input applied (u64), then one byte per pixel. An input event is: sequence number (u64), kind (u8: 0 nothing,
//! 1 pointer, 2 press, 3 key), x or character (u16), y (u16).
use super::font;
use serde_json::{Value, json};
use std::f32::consts::TAU;
use std::time::{SystemTime, UNIX_EPOCH};

const WIDTH: usize = 192;
const HEIGHT: usize = 108;
/// Bytes in front of the pixels.
const HEADER: usize = 24;
/// Characters kept of what was typed.
const TEXT_MAX: usize = 25 * LINES;
/// Characters in a line of the window, and its lines.
const LINE: usize = 25;
const LINES: usize = 6;
/// Frames that the ring around a press lasts.
const RING: u64 = 18;

/// Shades of the sky, from the top down: the first palette indices.
const SKY: u8 = 32;
const HILLS: u8 = SKY;
const SUN: u8 = HILLS + 3;
const HALO: u8 = SUN + 1;
const WHITE: u8 = HALO + 1;
const BLACK: u8 = WHITE + 1;
const WINDOW: u8 = BLACK + 1;
const TITLE: u8 = WINDOW + 1;
const TEXT: u8 = TITLE + 1;
const FAINT: u8 = TEXT + 1;
const ACCENT: u8 = FAINT + 1;

/// What the page needs to know to show frames.
pub(super) fn description(name: &str) -> Value {
    json!({ "width": WIDTH, "height": HEIGHT, "header": HEADER, "hue": hue(name), "palette": palette(hue(name)) })
}

fn hue(name: &str) -> u32 {
    // Neighbouring names, as addresses in a row are, get different colours.
    let sum: usize = name.bytes().map(usize::from).sum();
    [190, 16, 268, 172, 334][sum % 5]
}

/// CSS colours in the order of the indices.
fn palette(hue: u32) -> Vec<String> {
    let hsl = |turn: u32, s: u32, l: u32| format!("hsl({} {s}% {l}%)", (hue + turn) % 360);
    let sky = (0..u32::from(SKY)).map(|i| hsl(i * 28 / 31, 44 + i / 2, 11 + i * 43 / 31));
    let rest = [
        hsl(20, 42, 30),
        hsl(10, 46, 20),
        hsl(0, 50, 12),
        hsl(40, 100, 84),
        hsl(34, 80, 68),
        "hsl(0 0% 100%)".into(),
        "hsl(0 0% 0%)".into(),
        hsl(0, 22, 9),
        hsl(0, 20, 20),
        hsl(40, 70, 86),
        hsl(0, 14, 52),
        hsl(30, 90, 70),
    ];
    sky.chain(rest).collect()
}

/// One client's desktop.
pub(super) struct Desktop {
    name: String,
    frame: u64,
    input: u64,
    pointer: (usize, usize),
    press: Option<(usize, usize, u64)>,
    text: String,
}

impl Desktop {
    pub(super) fn new(name: &str) -> Self {
        let pointer = (WIDTH / 2, HEIGHT / 2);
        Self { name: name.into(), frame: 0, input: 0, pointer, press: None, text: String::new() }
    }

    /// Applies an input event; one that is none is ignored.
    pub(super) fn input(&mut self, event: &[u8]) {
        let Some((sequence, kind, x, y)) = parse(event) else { return };
        let at = (usize::from(x).min(WIDTH - 1), usize::from(y).min(HEIGHT - 1));
        self.input = sequence;
        match kind {
            1 => self.pointer = at,
            2 => (self.pointer, self.press) = (at, Some((at.0, at.1, self.frame))),
            3 => self.key(char::from_u32(x.into()).unwrap_or('?')),
            _ => {}
        }
    }

    fn key(&mut self, key: char) {
        match key {
            '\u{8}' => drop(self.text.pop()),
            '\n' => {
                let gap = LINE - self.text.chars().count() % LINE;
                self.text.extend(std::iter::repeat_n(' ', gap));
            }
            key => self.text.push(key),
        }
        let length = self.text.chars().count();
        if length >= TEXT_MAX {
            // The window scrolls by lines.
            let gone = (length - TEXT_MAX) / LINE * LINE + LINE;
            self.text = self.text.chars().skip(gone).collect();
        }
    }

    /// The next frame.
    pub(super) fn frame(&mut self) -> Vec<u8> {
        self.frame += 1;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let micros = u64::try_from(now.as_micros()).unwrap_or_default();
        let mut frame = Vec::with_capacity(HEADER + WIDTH * HEIGHT);
        for field in [self.frame, micros, self.input] {
            frame.extend(field.to_be_bytes());
        }
        frame.extend(self.draw(micros / 1000).pixels);
        frame
    }

    #[allow(clippy::cast_precision_loss)] // a position on a path, not a count
    fn draw(&self, now_ms: u64) -> Picture {
        let mut picture = Picture::sky();
        let seconds = (now_ms % 1_000_000_000) as f64 / 1000.0;
        picture.sun(seconds);
        picture.hills(seconds);
        self.window(&mut picture);
        self.bar(&mut picture, now_ms);
        if let Some((x, y, since)) = self.press
            && self.frame - since < RING
        {
            picture.ring(x, y, usize::try_from(self.frame - since).unwrap_or_default());
        }
        picture.pointer(self.pointer);
        picture
    }

    fn window(&self, picture: &mut Picture) {
        let (x, y, width, height) = (12, 14, 112, 54);
        picture.shade(x + 2, y + 3, width, height);
        picture.fill(x, y, width, height, WINDOW);
        picture.fill(x, y, width, 9, TITLE);
        for (i, shade) in [ACCENT, HALO, FAINT].into_iter().enumerate() {
            picture.fill(x + 3 + 5 * i, y + 3, 3, 3, shade);
        }
        picture.text(x + 22, y + 2, &self.name, FAINT);
        if self.text.is_empty() {
            picture.text(x + 8, y + 14, "type something", FAINT);
        }
        let letters: Vec<char> = self.text.chars().collect();
        for (row, line) in letters.chunks(LINE).enumerate() {
            picture.text(x + 6, y + 14 + 6 * row, &String::from_iter(line), TEXT);
        }
        if self.frame % 60 < 30 {
            let (row, column) = (letters.len() / LINE, letters.len() % LINE);
            picture.fill(x + 6 + font::ADVANCE * column, y + 14 + 6 * row, 1, font::ROWS, ACCENT);
        }
    }

    fn bar(&self, picture: &mut Picture, now_ms: u64) {
        let y = HEIGHT - 9;
        picture.fill(0, y, WIDTH, 9, WINDOW);
        picture.fill(2, y + 2, 5, 5, ACCENT);
        picture.text(10, y + 2, &self.name, TEXT);
        let seconds = now_ms / 1000;
        let clock = format!(
            "{} {:02}:{:02}:{:02}.{}",
            self.frame,
            seconds / 3600 % 24,
            seconds / 60 % 60,
            seconds % 60,
            now_ms / 100 % 10
        );
        picture.text(WIDTH - 2 - font::ADVANCE * clock.len(), y + 2, &clock, TEXT);
    }
}

/// Sequence number, kind, x and y of an input event.
fn parse(event: &[u8]) -> Option<(u64, u8, u16, u16)> {
    let (sequence, rest) = event.split_first_chunk()?;
    let (kind, rest) = rest.split_first()?;
    let (x, y) = rest.split_first_chunk()?;
    Some((
        u64::from_be_bytes(*sequence),
        *kind,
        u16::from_be_bytes(*x),
        u16::from_be_bytes(y.try_into().ok()?),
    ))
}

/// Palette indices, row by row. Whatever lies outside is not drawn.
struct Picture {
    pixels: Vec<u8>,
}

impl Picture {
    fn sky() -> Self {
        // Ordered dithering hides the bands.
        let bayer = [[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]];
        let shade = |x: usize, y: usize| y * 16 * (usize::from(SKY) - 1) / HEIGHT + bayer[y % 4][x % 4];
        let row = |y| (0..WIDTH).map(move |x| u8::try_from(shade(x, y) / 16).unwrap_or(SKY - 1));
        Self { pixels: (0..HEIGHT).flat_map(row).collect() }
    }

    fn set(&mut self, x: usize, y: usize, shade: u8) {
        if x < WIDTH && y < HEIGHT {
            self.pixels[y * WIDTH + x] = shade;
        }
    }

    fn fill(&mut self, x: usize, y: usize, width: usize, height: usize, shade: u8) {
        for row in y..y + height {
            for column in x..x + width {
                self.set(column, row, shade);
            }
        }
    }

    /// A shadow: every second pixel.
    fn shade(&mut self, x: usize, y: usize, width: usize, height: usize) {
        for row in y..y + height {
            for column in (x..x + width).filter(|column| (column + row) % 2 == 0) {
                self.set(column, row, BLACK);
            }
        }
    }

    fn text(&mut self, x: usize, y: usize, text: &str, shade: u8) {
        for (i, letter) in text.chars().enumerate() {
            for (dx, dy) in (0..3).flat_map(|dx| (0..font::ROWS).map(move |dy| (dx, dy))) {
                if font::set(letter, dx, dy) {
                    self.set(x + font::ADVANCE * i + dx, y + dy, shade);
                }
            }
        }
    }

    /// The moving sprite: a sun that swings across the sky.
    #[allow(clippy::cast_possible_truncation)] // pixels
    fn sun(&mut self, seconds: f64) {
        let (x, y) = (150.0 + 26.0 * (seconds * 0.9).sin(), 40.0 + 22.0 * (seconds * 1.3).cos());
        self.disc(x as i32, y as i32, 13, HALO, true);
        self.disc(x as i32, y as i32, 10, SUN, false);
    }

    fn disc(&mut self, x: i32, y: i32, radius: i32, shade: u8, sparse: bool) {
        for (dx, dy) in (-radius..=radius).flat_map(|dx| (-radius..=radius).map(move |dy| (dx, dy))) {
            let inside = dx * dx + dy * dy <= radius * radius;
            if let (true, Ok(x), Ok(y)) = (inside, usize::try_from(x + dx), usize::try_from(y + dy))
                && (!sparse || (x + y) % 2 == 0)
            {
                self.set(x, y, shade);
            }
        }
    }

    /// Three ranges that drift at different speeds.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)] // pixels
    fn hills(&mut self, seconds: f64) {
        for (range, (base, height, waves, speed)) in
            [(74.0, 9.0, 2.0, 0.15), (84.0, 7.0, 3.0, 0.3), (93.0, 5.0, 4.0, 0.6)].into_iter().enumerate()
        {
            let drift = (seconds * speed % f64::from(TAU)) as f32;
            for x in 0..WIDTH {
                let angle = x as f32 / WIDTH as f32 * TAU;
                let wave = (angle * waves * 0.5 + drift).sin() + 0.4 * (angle * waves * 1.7 + drift).cos();
                let top = (base + height * wave * 0.7) as usize;
                self.fill(x, top, 1, HEIGHT.saturating_sub(top), HILLS + range as u8);
            }
        }
    }

    fn ring(&mut self, x: usize, y: usize, age: usize) {
        let radius = 2 + age / 2;
        for (dx, dy) in (0..=radius).flat_map(|dx| (0..=radius).map(move |dy| (dx, dy))) {
            if (dx * dx + dy * dy).abs_diff(radius * radius) <= radius {
                let (left, top) = (x.wrapping_sub(dx), y.wrapping_sub(dy));
                for (x, y) in [(x + dx, y + dy), (left, y + dy), (x + dx, top), (left, top)] {
                    self.set(x, y, WHITE);
                }
            }
        }
    }

    fn pointer(&mut self, (x, y): (usize, usize)) {
        // Each row is as long as its number, until the arrow's tail.
        for (row, length) in [1, 2, 3, 4, 5, 6, 7, 4, 2].into_iter().enumerate() {
            self.fill(x, y + row, length + 1, 1, BLACK);
            self.fill(x, y + row, length, 1, WHITE);
        }
    }
}
