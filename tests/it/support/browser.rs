//! A real browser: Chromium, driven by its driver over the WebDriver protocol, which is JSON over HTTP.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use serde_json::{Value, json};

use super::process::{Background, Invocation};
use super::{PATIENCE, wait_until};

/// A browser with one window; it ends when this is dropped.
#[derive(Debug)]
pub struct Browser {
    driver: Background,
    port: u16,
    session: String,
}

impl Browser {
    /// Starts it. `directory` takes its profile.
    #[track_caller]
    pub fn start(directory: &Path) -> Self {
        let found = std::process::Command::new("chromedriver").arg("--version").output();
        assert!(found.is_ok(), "no chromedriver here (Debian: apt-get install chromium chromium-driver)");
        let mut driver = Invocation::new("chromedriver", directory).args(["--port=0"]).spawn();
        let port = || driver.stdout().split("started successfully on port ").nth(1)?.split('.').next()?.parse().ok();
        let mut found: Option<u16> = None;
        wait_until("the driver listens", || {
            found = port();
            found.is_some()
        });
        assert!(driver.is_running());
        let mut browser = Self { port: found.expect("it was waited for"), driver, session: String::new() };
        let profile = directory.join("browser");
        let args = [
            "--headless=new".to_owned(),
            // Tests run as root in containers with a small /dev/shm.
            "--no-sandbox".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--disable-gpu".to_owned(),
            format!("--user-data-dir={}", profile.display()),
        ];
        let wanted = json!({"capabilities": {"alwaysMatch": {"goog:chromeOptions": {"args": args}}}});
        let answer = browser.call("POST", "/session", &wanted);
        browser.session = answer["sessionId"].as_str().unwrap_or_else(|| panic!("no session: {answer}")).to_owned();
        browser
    }

    #[track_caller]
    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("the driver listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{}\r\ncontent-type: application/json\r\nconnection: close\r\n\
             content-length: {}\r\n\r\n{body}",
            self.port,
            body.len()
        );
        stream.write_all(request.as_bytes()).expect("the driver reads");
        let mut answer = Vec::new();
        let mut part = [0; 65_536];
        // The driver may keep the connection open: the length says where the answer ends.
        loop {
            let read = stream.read(&mut part).unwrap_or_else(|error| panic!("{method} {path}: {error}"));
            answer.extend_from_slice(&part[..read]);
            let text = String::from_utf8_lossy(&answer);
            if let Some((head, _)) = text.split_once("\r\n\r\n") {
                let length = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
                let length: usize = length.expect("the driver says how long its answer is");
                if answer.len() >= head.len() + 4 + length {
                    let value: Value = serde_json::from_slice(&answer[head.len() + 4..]).expect("JSON");
                    return value["value"].clone();
                }
            }
            assert!(read > 0, "the driver ended its answer early: {text}");
        }
    }

    #[track_caller]
    fn command(&self, method: &str, path: &str, body: Value) -> Value {
        let value = self.call(method, &format!("/session/{}{path}", self.session), &body);
        assert!(value.get("error").is_none(), "{path}: {value}");
        value
    }

    #[track_caller]
    pub fn open(&self, url: &str) {
        self.command("POST", "/url", json!({ "url": url }));
    }

    /// The result of a function body. It works also where the page's own scripts are switched off.
    #[track_caller]
    pub fn run(&self, script: &str) -> Value {
        self.command("POST", "/execute/sync", json!({ "script": script, "args": [] }))
    }

    /// The text of the first element that the selector finds; empty if there is none.
    #[track_caller]
    pub fn text(&self, selector: &str) -> String {
        let script = format!("const e = document.querySelector({}); return e ? e.innerText : '';", json!(selector));
        self.run(&script).as_str().unwrap_or_default().to_owned()
    }

    #[track_caller]
    pub fn wait_for_text(&self, selector: &str, text: &str) {
        wait_until(&format!("{selector} says {text:?}"), || {
            self.text(selector).split_whitespace().collect::<Vec<_>>().join(" ").contains(text)
        });
    }

    /// Presses keys, one after the other.
    #[track_caller]
    pub fn press(&self, keys: &str) {
        let key = |key: char| [json!({"type": "keyDown", "value": key}), json!({"type": "keyUp", "value": key})];
        let actions: Vec<Value> = keys.chars().flat_map(key).collect();
        self.command("POST", "/actions", json!({"actions": [{"type": "key", "id": "keyboard", "actions": actions}]}));
    }

    /// Presses Tab until the element that the selector finds has the focus.
    #[track_caller]
    pub fn tab_to(&self, selector: &str) {
        let has_focus = format!("return document.activeElement.matches({})", json!(selector));
        for _ in 0..100 {
            if self.run(&has_focus) == true {
                return;
            }
            self.press("\u{e004}");
        }
        panic!("{selector} cannot be reached with Tab");
    }

    /// Clicks the element that the selector finds.
    #[track_caller]
    pub fn click(&self, selector: &str) {
        let found = self.command("POST", "/element", json!({"using": "css selector", "value": selector}));
        let element = found.as_object().and_then(|found| found.values().next()).and_then(Value::as_str).expect("an element");
        self.command("POST", &format!("/element/{element}/click"), json!({}));
    }

    /// Shows the page in a window of this width, in light or dark colours.
    #[track_caller]
    pub fn emulate(&self, width: u32, colours: &str) {
        let metrics = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false});
        self.devtools("Emulation.setDeviceMetricsOverride", metrics);
        self.devtools("Emulation.setEmulatedMedia", json!({"features": [{"name": "prefers-color-scheme", "value": colours}]}));
    }

    /// Switches the page's scripts off.
    #[track_caller]
    pub fn without_scripts(&self) {
        self.devtools("Emulation.setScriptExecutionDisabled", json!({"value": true}));
    }

    #[track_caller]
    fn devtools(&self, command: &str, params: Value) {
        self.command("POST", "/goog/cdp/execute", json!({"cmd": command, "params": params}));
    }

    /// What axe-core finds wrong with the page as it is, by the rules of WCAG 2.2 A and AA. `None` without axe-core, which
    /// `./run.sh test` downloads.
    #[track_caller]
    pub fn barriers(&self) -> Option<String> {
        let axe = std::fs::read_to_string(Path::new(env!("CARGO_TARGET_TMPDIR")).join("axe.min.js")).ok()?;
        const ASK: &str = "return axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa']}).then(found => \
            found.passes.length < 10 ? 'axe-core has looked at nothing' : found.violations.map(v => v.id + ': ' + v.help + '\\n' + \
            v.nodes.map(n => '  ' + n.html.slice(0, 200) + ' ' + n.any.map(a => a.message).join(' ')).join('\\n')).join('\\n'))";
        Some(self.run(&format!("{axe}\n{ASK}")).as_str().expect("axe-core answers with text").to_owned())
    }

    /// The source of the page as the browser has it now.
    #[track_caller]
    pub fn source(&self) -> String {
        self.command("GET", "/source", Value::Null).as_str().unwrap_or_default().to_owned()
    }

    /// The address of the page.
    #[track_caller]
    pub fn url(&self) -> String {
        self.command("GET", "/url", Value::Null).as_str().unwrap_or_default().to_owned()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ends Chromium as well, which the driver's end alone would leave.
        if !std::thread::panicking() && self.driver.is_running() {
            self.call("DELETE", &format!("/session/{}", self.session), &Value::Null);
        } else if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) {
            let _ = write!(stream, "DELETE /session/{} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 0\r\n\r\n", self.session);
            let _ = stream.set_read_timeout(Some(std::time::Duration::from_secs(5)));
            let _ = stream.read(&mut [0; 256]);
        }
    }
}
