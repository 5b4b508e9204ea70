//! A font of 3x5 pixels for the desktop's picture.

/// Pixels of a letter, and one of space.
pub(super) const ADVANCE: usize = 4;

/// Rows of a letter.
pub(super) const ROWS: usize = 5;

/// Whether a letter's pixel is set.
pub(super) fn set(letter: char, x: usize, y: usize) -> bool {
    glyph(letter.to_ascii_uppercase()) >> (3 * (ROWS - 1 - y) + 2 - x) & 1 == 1
}

/// One octal digit is one row: 4 is the left pixel, 1 the right one.
#[rustfmt::skip]
fn glyph(letter: char) -> u16 {
    match letter {
        'A' => 0o25755, 'B' => 0o65656, 'C' => 0o34443, 'D' => 0o65556, 'E' => 0o74647, 'F' => 0o74644,
        'G' => 0o34553, 'H' => 0o55755, 'I' => 0o72227, 'J' => 0o11152, 'K' => 0o55655, 'L' => 0o44447,
        'M' => 0o57755, 'N' => 0o65555, 'O' => 0o25552, 'P' => 0o65644, 'Q' => 0o25563, 'R' => 0o65655,
        'S' => 0o34216, 'T' => 0o72222, 'U' => 0o55557, 'V' => 0o55552, 'W' => 0o55775, 'X' => 0o55255,
        'Y' => 0o55222, 'Z' => 0o71247,
        '0' => 0o75557, '1' => 0o26227, '2' => 0o71747, '3' => 0o71717, '4' => 0o55711, '5' => 0o74717,
        '6' => 0o74757, '7' => 0o71122, '8' => 0o75757, '9' => 0o75717,
        ' ' => 0o00000, '.' => 0o00002, ',' => 0o00024, ':' => 0o02020, ';' => 0o02024, '!' => 0o22202,
        '?' => 0o61202, '-' => 0o00700, '+' => 0o02720, '=' => 0o07070, '_' => 0o00007, '*' => 0o52500,
        '/' => 0o11244, '\\' => 0o44211, '|' => 0o22222, '(' => 0o12221, ')' => 0o42224, '[' => 0o32223,
        ']' => 0o62226, '{' => 0o32623, '}' => 0o62326, '<' => 0o12421, '>' => 0o42124, '\'' => 0o22000,
        '"' => 0o55000, '`' => 0o42000, '^' => 0o25000, '#' => 0o57575, '%' => 0o51245, '&' => 0o25253,
        '@' => 0o75743, '$' => 0o36236, '~' => 0o01740,
        _ => 0o70507,
    }
}
