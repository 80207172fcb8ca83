//! Control characters in data, names and errors are shown, never sent: a terminal would obey them. This file is the only place
//! that makes them visible; `rejects export` alone passes bytes as they are.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};

/// What a text is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Text of many lines: line breaks and tabs stay.
    Text,
    /// One line, or a cell of a table: line breaks and tabs are shown as well.
    Line,
    /// JSON that was written already: only what the writer left as it is.
    Json,
}

/// The text with its control characters made visible, such as `\x1b`; in JSON as `\u009b`.
pub fn visible(text: &str, form: Form) -> Cow<'_, str> {
    let Some(first) = text.find(|c| is_shown(c, form)) else { return Cow::Borrowed(text) };
    let mut shown = String::with_capacity(text.len() + 16);
    shown.push_str(&text[..first]);
    for c in text[first..].chars() {
        if is_shown(c, form) { show(c, form, &mut shown) } else { shown.push(c) }
    }
    Cow::Owned(shown)
}

fn show(c: char, form: Form, shown: &mut String) {
    let code = u32::from(c);
    let written = match c {
        _ if form == Form::Json => write!(shown, "\\u{code:04x}"),
        '\n' => write!(shown, "\\n"),
        '\r' => write!(shown, "\\r"),
        '\t' => write!(shown, "\\t"),
        '\0'..='\u{ff}' => write!(shown, "\\x{code:02x}"),
        _ => write!(shown, "\\u{code:04x}"),
    };
    written.expect("a string can always be written to");
}

/// JSON has its own escapes for what is below the space, and its line breaks are between the values.
fn is_shown(c: char, form: Form) -> bool {
    match c {
        '\n' | '\t' => form == Form::Line,
        '\0'..='\x1f' => form != Form::Json,
        _ => c.is_control() || is_invisible_order(c),
    }
}

/// Marks that change the direction in which a terminal shows the text, and separators of lines that are no line break.
fn is_invisible_order(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Passes text on with its control characters made visible. Each call of `write` must bring whole characters, as `write!` and
/// serializers do.
#[derive(Debug)]
pub struct VisibleWriter<W> {
    inner: W,
    form: Form,
}

impl<W: Write> VisibleWriter<W> {
    /// A writer in front of `inner`.
    pub fn new(inner: W, form: Form) -> Self {
        Self { inner, form }
    }

    /// The writer behind.
    pub fn into_inner(self) -> W {
        self.inner
    }
}

impl<W: Write> Write for VisibleWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner.write_all(visible(&String::from_utf8_lossy(bytes), self.form).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVIL: &str = "a\x1b[2Jb\x07\u{9b}c\u{7f}\u{202e}d\n\té";

    #[test]
    fn control_characters_are_shown() {
        assert_eq!(visible(EVIL, Form::Text), "a\\x1b[2Jb\\x07\\x9bc\\x7f\\u202ed\n\té");
        assert_eq!(visible(EVIL, Form::Line), "a\\x1b[2Jb\\x07\\x9bc\\x7f\\u202ed\\n\\té");
        assert!(matches!(visible("Zoë 東京 \\x1b", Form::Line), Cow::Borrowed(_)));
    }

    #[test]
    fn json_stays_the_same_value() {
        let written = serde_json::to_string(&[EVIL]).unwrap();
        let shown = visible(&written, Form::Json);
        assert!(!shown.chars().any(|c| c.is_control() || is_invisible_order(c)), "{shown}");
        assert!(shown.contains("\\u009b") && shown.contains("\\u007f") && shown.contains("\\u202e"), "{shown}");
        assert_eq!(serde_json::from_str::<Vec<String>>(&shown).unwrap(), [EVIL]);
    }

    #[test]
    fn a_writer_shows_what_it_passes_on() {
        let mut out = VisibleWriter::new(Vec::new(), Form::Text);
        for part in ["\x1b", "\n", "é"] {
            out.write_all(part.as_bytes()).unwrap();
        }
        assert_eq!(out.into_inner(), "\\x1b\né".as_bytes());
    }
}
