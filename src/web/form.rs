//! Fields of queries and forms.

use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;

/// A form has a few short fields.
const MOST_BYTES: usize = 16 * 1024;
const MOST_TIME: Duration = Duration::from_secs(10);

/// Fields by their names, decoded.
#[derive(Debug, Default)]
pub struct Fields(Vec<(String, String)>);

impl Fields {
    /// The fields of `a=1&b=2`.
    pub fn parse(text: &str) -> Self {
        let decode = |text: &str| {
            let spaces = text.replace('+', " ");
            percent_encoding::percent_decode_str(&spaces).decode_utf8_lossy().into_owned()
        };
        let field = |pair: &str| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        };
        Self(text.split('&').filter(|pair| !pair.is_empty()).map(field).collect())
    }

    /// The fields of a form that a browser sent; `None` if it is too long or comes too slowly.
    pub async fn read(body: Incoming) -> Option<Self> {
        let read = tokio::time::timeout(MOST_TIME, Limited::new(body, MOST_BYTES).collect()).await;
        let bytes = read.ok()?.ok()?.to_bytes();
        Some(Self::parse(std::str::from_utf8(&bytes).ok()?))
    }

    /// A field that is there and not empty.
    pub fn get(&self, name: &str) -> Option<String> {
        self.0.iter().find(|(found, value)| found == name && !value.is_empty()).map(|(_, value)| value.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_decoded_and_empty_ones_are_none() {
        let fields = Fields::parse("a=1&b=%3Cb%3E+x&c=&d&e=%ff&a=2");
        let get = |name: &str| fields.get(name);
        assert_eq!((get("a").as_deref(), get("b").as_deref(), get("e").as_deref()), (Some("1"), Some("<b> x"), Some("\u{fffd}")));
        assert_eq!((get("c"), get("d"), get("x")), (None, None, None));
    }
}
