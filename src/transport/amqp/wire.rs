//! The format of messages: which parts of a piece are in the headers and which are in the body. Also decodes messages of other
//! programs. Pure: it does no input or output.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::dataset::Dataset;
use crate::record::chunk::{Chunk, ChunkBody, Framing};
use crate::record::row::{Reject, RejectReason};
use crate::record::split::{SplitError, Splitter, split_text};
use crate::transport::piece::{Content, FileEnd, ForeignMessage, Load};

const JSON: &str = "application/json";
const NDJSON: &str = "application/x-ndjson";
/// The delivery mode of a message that survives a restart of the broker.
const PERSISTENT: u8 = 2;

/// A message to publish.
#[derive(Debug, Clone)]
pub struct Message {
    pub properties: BasicProperties,
    pub body: Vec<u8>,
}

/// Why a message cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undecodable {
    /// One word, for programs to read.
    pub reason: &'static str,
    /// A description, for people to read.
    pub detail: String,
}

impl Undecodable {
    fn new(reason: &'static str, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }

    fn header(name: &str, expected: &str) -> Self {
        Self::new("malformed_header", format!("the header `{name}` is missing or not {expected}"))
    }

    fn body(expected: &str, found: impl std::fmt::Display) -> Self {
        Self::new("malformed_body", format!("the body is not {expected}: {found}"))
    }
}

/// Identifies a message. A redelivery of the message has the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MessageKey([u8; 32]);

impl MessageKey {
    fn of(parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }
}

impl MessageKey {
    /// The key as it is stored.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The key of a message whose properties cannot be read.
    pub fn of_undecodable(body: &[u8]) -> Self {
        Self::of(&[body])
    }

    #[cfg(test)]
    pub fn example(n: u8) -> Self {
        Self([n; 32])
    }
}

// ---- encoding --------------------------------------------------------------------------------------------------------

/// Encodes the end of a load.
pub fn encode_end(load: &Load, end: &FileEnd) -> Message {
    let FileEnd { records, bytes, error, sha256, host } = end.clone();
    let body = EndBody { records, bytes, error, sha256: sha256.map(|hash| hash.to_string()), host };
    let body = serde_json::to_vec(&body).expect("numbers and text are always JSON");
    message(load, Headers::of(load, Kind::End), "end", JSON, body)
}

/// Encodes a chunk of a load.
pub fn encode_chunk(load: &Load, chunk: Chunk) -> Message {
    let kind = match chunk.body {
        ChunkBody::Records { .. } => Kind::Chunk,
        ChunkBody::Rejects(_) => Kind::Rejects,
    };
    let mut headers = Headers::of(load, kind);
    headers.number("seq", chunk.seq);
    headers.number("first_ordinal", chunk.first_ordinal);
    headers.number("first_byte_offset", chunk.first_byte_offset);
    let (content_type, body) = records_body(chunk.body);
    message(load, headers, &chunk.seq.to_string(), content_type, body)
}

/// The content type and the body for a chunk's records or rejects.
fn records_body(body: ChunkBody) -> (&'static str, Vec<u8>) {
    match body {
        ChunkBody::Records { framing: Framing::Stream, text, .. } => (NDJSON, text),
        ChunkBody::Records { framing: Framing::Array, text, .. } => {
            let mut body = Vec::with_capacity(text.len() + 2);
            body.push(b'[');
            body.extend_from_slice(&text);
            body.push(b']');
            (JSON, body)
        }
        ChunkBody::Rejects(rejects) => {
            let rejects: Vec<RejectBody> = rejects.into_iter().map(RejectBody::from).collect();
            (JSON, serde_json::to_vec(&rejects).expect("numbers and text are always JSON"))
        }
    }
}

fn message(load: &Load, headers: Headers, part: &str, content_type: &str, body: Vec<u8>) -> Message {
    let properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_content_type(content_type.into())
        .with_app_id("dataloader".into())
        .with_message_id(short(format!("{}/{part}", load.key)))
        .with_headers(headers.0);
    Message { properties, body }
}

/// Makes a short string, which in AMQP has at most 255 bytes. Dataset names and this program's message ids fit.
fn short(text: String) -> ShortString {
    ShortString::from(text)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Chunk,
    Rejects,
    End,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Chunk => "chunk",
            Self::Rejects => "rejects",
            Self::End => "end",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Chunk, Self::Rejects, Self::End].into_iter().find(|kind| kind.name() == name)
    }
}

struct Headers(FieldTable);

impl Headers {
    fn of(load: &Load, kind: Kind) -> Self {
        let mut headers = Self(FieldTable::default());
        headers.text("kind", kind.name());
        headers.text("dataset", &load.dataset.name);
        headers.text("load_key", &load.key.to_string());
        headers.text("source", &load.source);
        headers
    }

    fn text(&mut self, name: &str, value: &str) {
        self.0.insert(name.into(), AMQPValue::LongString(value.into()));
    }

    fn number(&mut self, name: &str, value: u64) {
        let value = i64::try_from(value).expect("positions in a file are below 2⁶³");
        self.0.insert(name.into(), AMQPValue::LongLongInt(value));
    }
}

/// The body of a message of kind `end`.
#[derive(Serialize, Deserialize)]
struct EndBody {
    records: u64,
    bytes: u64,
    error: Option<String>,
    /// Version 0.1.0 sent neither this nor the host.
    sha256: Option<String>,
    host: Option<String>,
}

/// One reject in the body of a message of kind `rejects`. `record` is in base64, because it may contain any bytes.
#[derive(Serialize, Deserialize)]
struct RejectBody {
    ordinal: u64,
    byte_offset: u64,
    reason: String,
    detail: String,
    record: String,
}

impl From<Reject> for RejectBody {
    fn from(reject: Reject) -> Self {
        Self {
            ordinal: reject.ordinal,
            byte_offset: reject.byte_offset,
            reason: reject.reason.as_str().to_owned(),
            detail: reject.detail,
            record: BASE64.encode(reject.record),
        }
    }
}

impl RejectBody {
    fn decode(self) -> Result<Reject, Undecodable> {
        let reason = RejectReason::from_name(&self.reason)
            .ok_or_else(|| Undecodable::body("a list of rejects", format_args!("unknown reason `{}`", self.reason)))?;
        let record = BASE64.decode(self.record).map_err(|error| Undecodable::body("a list of rejects", error))?;
        storable("a list of rejects", [self.ordinal, self.byte_offset], [Some(&self.detail)])?;
        Ok(Reject { ordinal: self.ordinal, byte_offset: self.byte_offset, reason, detail: self.detail, record })
    }
}

// ---- decoding --------------------------------------------------------------------------------------------------------

/// Refuses what the databases cannot store: they have signed numbers, and no U+0000 in texts.
fn storable<'a>(
    expected: &str,
    numbers: impl IntoIterator<Item = u64>,
    texts: impl IntoIterator<Item = Option<&'a String>>,
) -> Result<(), Undecodable> {
    if let Some(number) = numbers.into_iter().find(|number| i64::try_from(*number).is_err()) {
        return Err(Undecodable::body(expected, format_args!("the number {number} is too large")));
    }
    if texts.into_iter().flatten().any(|text| text.contains('\0')) {
        return Err(Undecodable::body(expected, "a text contains U+0000"));
    }
    Ok(())
}

/// What the properties of a message say, before its body is decoded.
#[derive(Debug)]
pub struct Envelope {
    load: Arc<Load>,
    kind: EnvelopeKind,
    key: MessageKey,
}

#[derive(Debug)]
enum EnvelopeKind {
    Chunk { position: Position, framing: Framing },
    Rejects(Position),
    End,
    Foreign { app_id: String, message_id: Option<String>, digest: [u8; 32] },
}

#[derive(Debug, Clone, Copy)]
struct Position {
    seq: u64,
    first_ordinal: u64,
    first_byte_offset: u64,
}

impl Envelope {
    /// Reads the properties of a message from the dataset's queue. Of the body it computes only the digest, and only for
    /// messages of other programs.
    ///
    /// # Errors
    /// If its `kind` is unknown, a header is malformed, or it belongs to another dataset.
    pub fn open(properties: &BasicProperties, body: &[u8], dataset: &Arc<Dataset>) -> Result<Self, Undecodable> {
        let fields = Fields(properties.headers().as_ref());
        if !fields.has("kind") {
            return Self::foreign(properties, body, dataset);
        }
        let kind = fields.text("kind")?;
        let kind =
            Kind::from_name(&kind).ok_or_else(|| Undecodable::new("unknown_kind", format!("the header `kind` is `{kind}`")))?;
        let in_headers = fields.text("dataset")?;
        if in_headers != dataset.name {
            let detail = format!("the header `dataset` is `{in_headers}`, but it was in the queue of `{}`", dataset.name);
            return Err(Undecodable::new("wrong_dataset", detail));
        }
        let load_key = fields.text("load_key")?.parse().map_err(|_| Undecodable::header("load_key", "a UUID"))?;
        let (kind, part) = match kind {
            Kind::Chunk => {
                let position = fields.position()?;
                let framing = match properties.content_type().as_ref().map(ShortString::as_str) {
                    Some(JSON) => Framing::Array,
                    Some(NDJSON) => Framing::Stream,
                    _ => {
                        let detail = format!("the content type of a chunk is neither `{JSON}` nor `{NDJSON}`");
                        return Err(Undecodable::new("malformed_header", detail));
                    }
                };
                (EnvelopeKind::Chunk { position, framing }, position.seq.to_string())
            }
            Kind::Rejects => {
                let position = fields.position()?;
                (EnvelopeKind::Rejects(position), position.seq.to_string())
            }
            Kind::End => (EnvelopeKind::End, "end".to_owned()),
        };
        let load = Load { key: load_key, dataset: Arc::clone(dataset), source: fields.text("source")? };
        let key = MessageKey::of(&[load_key.as_bytes(), part.as_bytes()]);
        Ok(Self { load: Arc::new(load), kind, key })
    }

    fn foreign(properties: &BasicProperties, body: &[u8], dataset: &Arc<Dataset>) -> Result<Self, Undecodable> {
        let text = |name: &str, value: &Option<ShortString>| {
            let text = value.as_ref().map_or_else(String::new, ToString::to_string);
            // The databases cannot store this character in a text.
            if text.contains('\0') { Err(Undecodable::header(name, "free of U+0000")) } else { Ok(text) }
        };
        let app_id = text("app_id", properties.app_id())?;
        let message_id = Some(text("message_id", properties.message_id())?).filter(|id| !id.is_empty());
        let digest: [u8; 32] = Sha256::digest(body).into();
        let id = message_id.as_deref().unwrap_or_default();
        let key = MessageKey::of(&[dataset.name.as_bytes(), app_id.as_bytes(), id.as_bytes(), &digest]);
        let load = Load {
            key: open_load_key(&dataset.name, &app_id),
            dataset: Arc::clone(dataset),
            source: if app_id.is_empty() { "amqp".to_owned() } else { format!("amqp:{app_id}") },
        };
        Ok(Self { load: Arc::new(load), kind: EnvelopeKind::Foreign { app_id, message_id, digest }, key })
    }

    /// The key that identifies the message.
    pub fn key(&self) -> MessageKey {
        self.key
    }

    /// Decodes the body into the part of the load that it contains.
    ///
    /// # Errors
    /// If the body does not match the properties.
    pub fn decode(self, body: &[u8]) -> Result<(Arc<Load>, Content), Undecodable> {
        let content = match self.kind {
            EnvelopeKind::Chunk { position, framing } => Content::Chunk(decode_records(position, framing, body)?),
            EnvelopeKind::Rejects(position) => {
                let rejects: Vec<RejectBody> =
                    serde_json::from_slice(body).map_err(|error| Undecodable::body("a list of rejects", error))?;
                let rejects = rejects.into_iter().map(RejectBody::decode).collect::<Result<_, _>>()?;
                Content::Chunk(in_range(position.chunk(ChunkBody::Rejects(rejects)))?)
            }
            EnvelopeKind::End => {
                let EndBody { records, bytes, error, sha256, host } =
                    serde_json::from_slice(body).map_err(|error| Undecodable::body("the totals of a file", error))?;
                storable("the totals of a file", [records, bytes], [error.as_ref(), host.as_ref()])?;
                let sha256 = sha256.map(|hash| hash.parse()).transpose();
                let sha256 = sha256.map_err(|error| Undecodable::body("the totals of a file", error))?;
                Content::End(FileEnd { records, bytes, error, sha256, host })
            }
            EnvelopeKind::Foreign { app_id, message_id, digest } => {
                Content::Foreign(ForeignMessage { app_id, message_id, digest, chunk: decode_foreign(body)? })
            }
        };
        Ok((self.load, content))
    }
}

impl Position {
    fn chunk(self, body: ChunkBody) -> Chunk {
        let Self { seq, first_ordinal, first_byte_offset } = self;
        Chunk { seq, first_ordinal, first_byte_offset, body }
    }
}

fn decode_records(position: Position, framing: Framing, body: &[u8]) -> Result<Chunk, Undecodable> {
    let text = match framing {
        Framing::Stream => body,
        Framing::Array => body
            .strip_prefix(b"[")
            .and_then(|rest| rest.strip_suffix(b"]"))
            .ok_or_else(|| Undecodable::body("an array", "it has no brackets"))?,
    };
    let Position { seq, first_ordinal, first_byte_offset } = position;
    let chunk = split_text(text.to_vec(), framing, seq, first_ordinal, first_byte_offset)
        .map_err(|error| Undecodable::body("a run of whole records", error))?;
    in_range(chunk)
}

/// Refuses a chunk with records whose positions the databases cannot store.
fn in_range(chunk: Chunk) -> Result<Chunk, Undecodable> {
    let ends = [chunk.first_ordinal.saturating_add(chunk.records()), chunk.first_byte_offset.saturating_add(chunk.bytes() as u64)];
    storable("a part of a file", ends, []).map(|()| chunk)
}

/// Puts all records of another program's message into one chunk.
fn decode_foreign(body: &[u8]) -> Result<Chunk, Undecodable> {
    let malformed = |error: SplitError| Undecodable::body("an array, an object or NDJSON", error);
    let mut splitter = Splitter::new(body);
    let (mut start, mut end, mut all, mut framing_of_all) = (0, 0, Vec::new(), Framing::Stream);
    while let Some(chunk) = splitter.next_chunk().map_err(malformed)? {
        let ChunkBody::Records { framing, text, spans } = chunk.body else {
            return Err(Undecodable::body("an array, an object or NDJSON", rejected(chunk.body)));
        };
        let at = usize::try_from(chunk.first_byte_offset).expect("an offset in a text that is in memory");
        if all.is_empty() {
            (start, framing_of_all) = (at, framing);
        }
        end = at + text.len();
        let by = u32::try_from(at - start).map_err(|_| Undecodable::body("smaller than 4 GiB", "it is larger"))?;
        all.extend(spans.into_iter().map(|span| span.start + by..span.end + by));
    }
    Ok(Chunk {
        seq: 0,
        first_ordinal: 1,
        first_byte_offset: start as u64,
        body: ChunkBody::Records { framing: framing_of_all, text: body[start..end].to_vec(), spans: all },
    })
}

fn rejected(body: ChunkBody) -> String {
    match body {
        ChunkBody::Rejects(rejects) => rejects.into_iter().next().map_or_else(String::new, |reject| reject.detail),
        ChunkBody::Records { .. } => String::new(),
    }
}

/// The load key of the ledger row that counts all messages of this dataset and `app_id`. It is derived from both, so that all
/// consumers use the same row.
pub fn open_load_key(dataset: &str, app_id: &str) -> Uuid {
    let MessageKey(digest) = MessageKey::of(&[dataset.as_bytes(), app_id.as_bytes()]);
    let (front, _) = digest.split_at(16);
    uuid::Builder::from_custom_bytes(front.try_into().expect("16 bytes")).into_uuid()
}

/// The headers of a message, read by name.
struct Fields<'a>(Option<&'a FieldTable>);

impl Fields<'_> {
    fn get(&self, name: &str) -> Option<&AMQPValue> {
        self.0.and_then(|table| table.inner().get(name))
    }

    fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    fn text(&self, name: &str) -> Result<String, Undecodable> {
        // The databases cannot store this character in a text.
        let text = text_of(self.get(name)).filter(|text| !text.contains('\0'));
        text.ok_or_else(|| Undecodable::header(name, "a text without U+0000"))
    }

    /// Clients use different integer types.
    fn number(&self, name: &str) -> Result<u64, Undecodable> {
        let number = match self.get(name) {
            Some(AMQPValue::LongLongInt(value)) => u64::try_from(*value).ok(),
            Some(AMQPValue::LongInt(value)) => u64::try_from(*value).ok(),
            Some(AMQPValue::ShortInt(value)) => u64::try_from(*value).ok(),
            Some(AMQPValue::ShortShortInt(value)) => u64::try_from(*value).ok(),
            Some(AMQPValue::LongUInt(value)) => Some((*value).into()),
            Some(AMQPValue::ShortUInt(value)) => Some((*value).into()),
            Some(AMQPValue::ShortShortUInt(value)) => Some((*value).into()),
            _ => None,
        };
        // The databases store signed numbers.
        number.filter(|n| i64::try_from(*n).is_ok()).ok_or_else(|| Undecodable::header(name, "a number from 0"))
    }

    fn position(&self) -> Result<Position, Undecodable> {
        Ok(Position {
            seq: self.number("seq")?,
            first_ordinal: self.number("first_ordinal")?,
            first_byte_offset: self.number("first_byte_offset")?,
        })
    }
}

/// The text of a header, if its value is a text.
pub fn text_of(value: Option<&AMQPValue>) -> Option<String> {
    match value? {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok().map(str::to_owned),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
