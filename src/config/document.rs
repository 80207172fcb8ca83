//! A TOML document whose values know their line, so that each error names the file and the line.

use std::fmt::Display;
use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;

use toml::de::{DeTable, DeValue};

use crate::error::{Error, Result};

/// The text of a configuration file, and the name of the file in error messages.
pub(super) struct Document {
    pub(super) name: String,
    pub(super) text: String,
}

impl Document {
    /// Parses the text. Pass the result to [`Document::root`] to read it.
    pub(super) fn parse(&self) -> Result<DeTable<'_>> {
        DeTable::parse(&self.text).map(|table| table.into_inner()).map_err(|e| {
            let span = e.span().unwrap_or_default();
            // Not the error's own message: it quotes the line, which may contain a password.
            match self.text.get(span.clone()) {
                Some(key) if e.message() == "duplicate key" => {
                    self.error(&span, format!("`{key}` is defined twice")).hint("give it once, or give one of the two another name")
                }
                _ => self.error(&span, format!("not valid TOML: {}", e.message())),
            }
        })
    }

    pub(super) fn root<'a>(&'a self, table: &'a DeTable<'a>) -> Section<'a> {
        Section { document: self, path: String::new(), span: 0..0, table }
    }

    fn error(&self, at: &Range<usize>, message: impl Display) -> Error {
        Error::usage(format!("{}: {message}", self.place(at)))
    }

    /// The file and line, such as `dataloader.toml:12`.
    fn place(&self, at: &Range<usize>) -> String {
        let end = at.start.min(self.text.len());
        let line = 1 + self.text.as_bytes()[..end].iter().filter(|&&b| b == b'\n').count();
        format!("{}:{line}", self.name)
    }
}

/// One table of the file.
pub(super) struct Section<'a> {
    document: &'a Document,
    /// Example: `datasets.events`. Empty for the file itself.
    path: String,
    span: Range<usize>,
    table: &'a DeTable<'a>,
}

impl<'a> Section<'a> {
    /// Returns an error for the first setting that is not one of `known`.
    pub(super) fn allow_only(&self, known: &[&str]) -> Result<()> {
        match self.entries().find(|entry| !known.contains(&entry.key)) {
            None => Ok(()),
            Some(entry) => {
                let place = if self.path.is_empty() { String::new() } else { format!(" in [{}]", self.path) };
                let error = entry.key_error(format!("unknown setting `{}`{place}", entry.key));
                Err(error.hint(suggestion(entry.key, known.iter().copied(), "settings")))
            }
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<Value<'a>> {
        self.entries().find(|entry| entry.key == key)
    }

    /// The settings in file order.
    pub(super) fn entries(&self) -> impl Iterator<Item = Value<'a>> {
        self.table.iter().map(|(key, value)| Value {
            document: self.document,
            path: if self.path.is_empty() { key.get_ref().to_string() } else { format!("{}.{}", self.path, key.get_ref()) },
            key: key.get_ref(),
            key_span: key.span(),
            span: value.span(),
            value: value.get_ref(),
        })
    }

    /// Makes an error at the header of this section.
    pub(super) fn error(&self, message: impl Display) -> Error {
        self.document.error(&self.span, message)
    }
}

/// One value of the file.
pub(super) struct Value<'a> {
    document: &'a Document,
    /// Example: `datasets.events.key`.
    path: String,
    pub(super) key: &'a str,
    key_span: Range<usize>,
    span: Range<usize>,
    value: &'a DeValue<'a>,
}

impl<'a> Value<'a> {
    /// Makes an error at the line of this value.
    pub(super) fn error(&self, message: impl Display) -> Error {
        self.document.error(&self.span, message)
    }

    /// Makes an error at the line of this value's key. In a multi-line section that is another line than the value's.
    pub(super) fn key_error(&self, message: impl Display) -> Error {
        self.document.error(&self.key_span, message)
    }

    /// Adds the place of this value to an error about its text.
    pub(super) fn locate(&self, error: Error) -> Error {
        error.context(self.document.place(&self.span))
    }

    pub(super) fn string(&self) -> Result<&'a str> {
        self.value.as_str().ok_or_else(|| self.wrong_kind("a string"))
    }

    pub(super) fn path(&self) -> Result<PathBuf> {
        match self.string()? {
            "" => Err(self.error(format!("`{}` is empty", self.path)).hint("give a directory, or leave the setting out")),
            text if text.contains('\0') => Err(self.error(format!("`{}` contains the character U+0000", self.path))),
            text => Ok(PathBuf::from(text)),
        }
    }

    pub(super) fn boolean(&self) -> Result<bool> {
        self.value.as_bool().ok_or_else(|| self.wrong_kind("true or false"))
    }

    pub(super) fn integer(&self, bounds: RangeInclusive<u32>) -> Result<u32> {
        let integer = self.value.as_integer().ok_or_else(|| self.wrong_kind("an integer"))?;
        // A number that does not fit 64 bits is outside of any bounds.
        match i64::from_str_radix(integer.as_str(), integer.radix()).ok().and_then(|n| u32::try_from(n).ok()) {
            Some(n) if bounds.contains(&n) => Ok(n),
            _ => Err(self.error(format!("`{}` is {}, which is out of bounds", self.path, integer.as_str())).hint(format!(
                "give a number from {} to {}",
                bounds.start(),
                bounds.end()
            ))),
        }
    }

    /// The strings of an array, each with its own place.
    pub(super) fn strings(&self) -> Result<Vec<(Value<'a>, &'a str)>> {
        let array = self.value.as_array().ok_or_else(|| self.wrong_kind("an array of strings"))?;
        array
            .iter()
            .map(|element| {
                let (document, key, path) = (self.document, self.key, self.path.clone());
                let value = Value { document, path, key, key_span: element.span(), span: element.span(), value: element.get_ref() };
                match element.get_ref().as_str() {
                    Some(text) => Ok((value, text)),
                    None => Err(value.error(format!("`{}` must hold strings only, holds {}", value.path, value.kind()))),
                }
            })
            .collect()
    }

    pub(super) fn section(&self) -> Result<Section<'a>> {
        let table = self.value.as_table().ok_or_else(|| self.wrong_kind("a section"))?;
        Ok(Section { document: self.document, path: self.path.clone(), span: self.key_span.clone(), table })
    }

    pub(super) fn is_section(&self) -> bool {
        self.value.is_table()
    }

    /// Makes an error for a value of the wrong type; `expected` says what the value must be.
    pub(super) fn wrong_kind(&self, expected: &str) -> Error {
        self.error(format!("`{}` must be {expected}, is {}", self.path, self.kind()))
    }

    fn kind(&self) -> &'static str {
        match self.value {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a float",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date or time",
            DeValue::Array(_) => "an array",
            DeValue::Table(_) => "a section",
        }
    }
}

/// Returns `did you mean `key`?` if a known name is similar, and the known names.
pub(super) fn suggestion<'a>(name: &str, known: impl Iterator<Item = &'a str> + Clone, what: &str) -> String {
    // clap uses the same measure and threshold for mistyped flags.
    let similarity = |candidate: &str| strsim::jaro(&name.to_lowercase(), &candidate.to_lowercase());
    let nearest = known.clone().map(|k| (similarity(k), k)).filter(|(s, _)| *s > 0.7).max_by(|a, b| a.0.total_cmp(&b.0));
    let list = known.collect::<Vec<_>>().join(", ");
    match nearest {
        Some((_, nearest)) => format!("did you mean `{nearest}`? The {what} are: {list}"),
        None => format!("the {what} are: {list}"),
    }
}
