//! The page in a real browser, against the real binary.

use crate::support::{Browser, Page, PrivatePostgres, Sandbox, Signal, StopMode, Store, array, event, wait_until};

/// Elements, quotes, control characters, and marks that turn the direction of text.
const EVIL: &str =
    "<script>document.title='owned'</script>\\\"'><img src=x onerror=\\\"document.title='owned'\\\">\\u001b\u{202e}evil";

#[test]
#[ignore = "needs Chromium: ./run.sh test"]
fn the_page_in_a_browser_on_sqlite() {
    the_page_in_a_browser(&Sandbox::new(Store::Sqlite));
}

#[test]
#[ignore = "needs PostgreSQL and Chromium: ./run.sh test"]
fn the_page_in_a_browser_on_postgres() {
    the_page_in_a_browser(&Sandbox::new(Store::Postgres));
}

#[test]
#[ignore = "needs PostgreSQL and Chromium: ./run.sh test"]
fn the_page_in_a_browser_follows_a_database_that_is_stopped_and_started() {
    let server = PrivatePostgres::start();
    let sandbox = Sandbox::on(&server);
    let mut process = sandbox.pipeline(["--http", "0"]).spawn();
    let page = Page::of(&mut process);
    process.wait_for_stderr("watching ");
    let browser = Browser::start(sandbox.path());
    browser.open(&format!("http://localhost:{}/", page.port()));
    browser.wait_for_text("#live", "live");
    browser.run("window.still = 'the same page'");
    let drop_one =
        |name: &str| sandbox.drop_in("events", format!("{name}.json"), array(&[event(name, "ada", "2024-05-01 10:00:00")]));
    drop_one("a");
    browser.wait_for_text("#sum-events", "1 read");
    browser.wait_for_text("#charts", "total_events");

    server.stop(StopMode::Fast);
    drop_one("b");
    browser.wait_for_text("#accounts", "The database does not answer since");
    browser.wait_for_text("#pipeline", "Nothing gets past the writer");
    axe_finds_no_barrier(&browser, &[browser.url()]);
    browser.run("window.still = 'the same page'");
    browser.wait_for_text("#accounts", "The database does not answer since");
    assert!(browser.text("#accounts").contains("The numbers are those of") && browser.text("#charts").contains("total_events"));
    browser.wait_for_text("#live", "live");

    server.restart();
    browser.wait_for_text("#sum-events", "2 read = 2 loaded");
    wait_until("nothing is wrong any more", || browser.run("return document.querySelectorAll('.alarm').length") == 0);
    browser.wait_for_text("#pipeline", "waits for files");
    assert_eq!(browser.run("return window.still"), "the same page", "it was never reloaded");
    drop(browser);
    process.signal(Signal::Terminate);
    process.wait().ok();
}

/// One browser for all of it: to start one takes longer than the questions.
fn the_page_in_a_browser(sandbox: &Sandbox) {
    let mut process = sandbox.pipeline(["--http", "0"]).spawn();
    let page = Page::of(&mut process);
    process.wait_for_stderr("watching ");
    let browser = Browser::start(sandbox.path());
    let url = |path: &str| format!("http://localhost:{}{path}", page.port());

    browser.open(&url("/"));
    browser.wait_for_text("#accounts", "Nothing is loaded yet");
    numbers_move_without_a_reload(sandbox, &browser);
    the_chart_shows_what_the_tables_hold(sandbox, &browser);
    poisoned_data_does_nothing(sandbox, &browser);
    it_fits_and_is_read_at_every_width(&browser);
    let load = browser.run("return document.querySelector('#loads td a').getAttribute('href')");
    let load = load.as_str().expect("the latest load");
    axe_finds_no_barrier(&browser, &["/", "/loads", load, "/rejects", "/loads?name=nothing"].map(url));
    the_keyboard_reaches_everything(sandbox, &browser, &["/loads", load, "/rejects"].map(url), &url("/"));
    rejects_are_replayed_and_discarded(sandbox, &browser, &url("/rejects"));
    browser.without_scripts();
    sandbox.drop_in("events", "last.json", array(&[event("z", "zoe", "2024-05-02 10:00:00")]));
    sandbox.wait_until_finished("events", 4);
    page.wait_for("/", "<b>16</b> read");
    browser.open(&url("/"));
    let source = browser.source();
    assert!(source.contains("<b>16</b> read") && source.contains("as of this reload"), "all is there without a script: {source}");
    drop(browser);
    process.signal(Signal::Terminate);
    process.wait().ok();
}

fn numbers_move_without_a_reload(sandbox: &Sandbox, browser: &Browser) {
    browser.wait_for_text("#live", "live");
    browser.run("window.still = 'the same page'");
    let good = [
        event("1", "ada", "2024-05-01 10:00:00"),
        event("2", "bob", "2024-05-01 11:00:00"),
        event("3", "ada", "2024-05-02 10:00:00"),
    ];
    for (i, records) in [(1, array(&good)), (2, array(&["7".to_owned(), good[0].clone(), "{\"id\":\"x\"}".to_owned()]))] {
        sandbox.drop_in("events", format!("{i}.json"), records);
        browser.wait_for_text("#sum-events", &format!("{} read", 3 * i));
    }
    browser.wait_for_text("#accounts", "6 read = 4 loaded + 2 rejected + 0 skipped + 0 in flight ✓ all accounted for");
    browser.wait_for_text("#rejects", "not_an_object");
    assert_eq!(browser.run("return window.still"), "the same page");
}

fn the_chart_shows_what_the_tables_hold(sandbox: &Sandbox, browser: &Browser) {
    browser.wait_for_text("#charts", "total_events");
    let titles =
        "return [...document.querySelectorAll('#charts figure:first-child rect title')].map(t => t.textContent).sort().join('\\n')";
    let rows = || -> String {
        let rows =
            sandbox.query("SELECT date, total_events, unique_events, unique_users FROM {modelled.events_by_date} ORDER BY date");
        let line = |row: Vec<Option<String>>| {
            let cell = |i: usize| row[i].clone().unwrap_or_default();
            format!("{}: {} total_events, {} unique_events, {} unique_users", cell(0), cell(1), cell(2), cell(3))
        };
        rows.into_iter().map(line).collect::<Vec<_>>().join("\n")
    };
    wait_until("the chart equals the table", || !rows().is_empty() && browser.run(titles) == rows().as_str());
}

fn poisoned_data_does_nothing(sandbox: &Sandbox, browser: &Browser) {
    let good = event("4", "eve", "2024-05-03 10:00:00").replace("Acme", EVIL);
    let bad = format!("{{\"id\":\"{EVIL}\",\"received_at\":\"{EVIL}\"}}");
    sandbox.drop_in("events", "<img src=x onerror=alert(1)>\u{202e}.json", array(&[good, bad, "8".to_owned(), "9".to_owned()]));
    browser.wait_for_text("#sum-events", "10 read");
    browser.wait_for_text("#charts", "<script>document.title");
    browser.wait_for_text("#loads", "<img src=x onerror=alert(1)>\\u{202e}.json");
    assert_eq!(browser.run("return [document.title, document.scripts.length, document.images.length].join()"), "dataloader,1,0");
}

fn it_fits_and_is_read_at_every_width(browser: &Browser) {
    let mut backgrounds = Vec::new();
    for (width, colours) in [(400, "light"), (400, "dark"), (1_600, "light"), (1_600, "dark")] {
        browser.emulate(width, colours);
        let wide = browser.run("return document.documentElement.scrollWidth - window.innerWidth");
        assert!(wide.as_i64() <= Some(0), "at {width} pixels it is {wide} too wide");
        backgrounds.push(browser.run("return getComputedStyle(document.body).backgroundColor").to_string());
    }
    assert!(
        backgrounds[0] == backgrounds[2] && backgrounds[1] == backgrounds[3] && backgrounds[0] != backgrounds[1],
        "{backgrounds:?}"
    );
    // What a screen reader needs: landmarks, names, table headers, labels.
    let unnamed = "return [...document.querySelectorAll('section, table, svg[role=img], meter, nav, input, select')].filter(e => \
                   !(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.labels && e.labels.length || e.querySelector('th[scope]') \
                   || e.type === 'hidden')).map(e => e.outerHTML.slice(0, 80)).join('; ')";
    assert_eq!(browser.run(unnamed), "");
    assert_eq!(browser.run("return document.querySelectorAll('main, header, footer, nav').length"), 4);
}

fn axe_finds_no_barrier(browser: &Browser, urls: &[String]) {
    for url in urls {
        browser.open(url);
        for (width, colours) in [(1_200, "light"), (1_200, "dark"), (400, "light")] {
            browser.emulate(width, colours);
            match browser.barriers() {
                Some(found) => assert_eq!(found, "", "{url} in {colours} colours at {width} pixels"),
                None => return eprintln!("SKIPPED: no axe-core here; ./run.sh test downloads it"),
            }
        }
    }
}

const TAB: &str = "\u{e004}";
const ENTER: &str = "\u{e007}";

fn the_keyboard_reaches_everything(sandbox: &Sandbox, browser: &Browser, urls: &[String], first: &str) {
    browser.open(first);
    browser.press(TAB);
    assert_eq!(browser.run("return document.activeElement.textContent"), "Skip to the content");
    browser.press(&TAB.repeat(3));
    assert_eq!(browser.run("return document.activeElement.textContent"), "Rejects");
    // A part of the page that changes while it has the focus keeps it, and what was opened stays open.
    browser.tab_to("summary");
    browser.press(ENTER);
    browser.tab_to("#loads-table");
    browser.run("document.querySelector('#loads h2').isOld = true");
    sandbox.drop_in("orgs", "o.json", "[{\"organization_key\":\"o\"}]");
    wait_until("the part has changed", || browser.run("return !document.querySelector('#loads h2').isOld") == true);
    assert_eq!(
        browser.run("return [document.activeElement.id, document.querySelector('details').open].join()"),
        "loads-table,true"
    );
    // Each link, button and field takes the focus once and shows it.
    for url in urls {
        browser.open(url);
        browser.run(
            "window.stops = []; window.unseen = []; document.addEventListener('focusin', e => { stops.push(e.target); \
             if (getComputedStyle(e.target).outlineStyle === 'none') unseen.push(e.target.outerHTML) })",
        );
        let all = "[...document.querySelectorAll('a[href], button, input:not([type=hidden]), select, summary, [tabindex]')]";
        let count = browser.run(&format!("return {all}.length")).as_u64().expect("a number");
        browser.press(&TAB.repeat(usize::try_from(count).expect("a few")));
        let missed = format!("return {all}.filter(e => !stops.includes(e)).map(e => e.outerHTML).concat(unseen).join('; ')");
        assert_eq!(browser.run(&missed), "", "{url}");
    }
    browser.open(first);
    browser.tab_to("nav a[href='/rejects']");
    browser.press(ENTER);
    browser.wait_for_text("h1", "Open rejects");
}

fn rejects_are_replayed_and_discarded(sandbox: &Sandbox, browser: &Browser, url: &str) {
    browser.open(url);
    let evil = browser.run("return [...document.querySelectorAll('pre')].map(e => e.textContent).join(' ')").to_string();
    assert!(evil.contains("<script>document.title='owned'") && evil.contains("u{202e}evil"), "{evil}");
    assert_eq!(browser.run("return [document.images.length, document.scripts.length].join()"), "0,1");
    for says in ["Replay 5 rejects?", "Done"] {
        browser.tab_to("#replay");
        browser.press(ENTER);
        browser.wait_for_text("h1", says);
    }
    browser.wait_for_text("main", "events: 5 replayed, 0 loaded, 5 still rejected.");
    browser.open(&format!("{url}?reason=not_an_object"));
    browser.click("#discard");
    browser.wait_for_text("h1", "Discard 3 rejects?");
    assert_eq!(sandbox.count("raw.rejects"), 5);
    browser.click("#discard");
    browser.wait_for_text("main", "3 rejects are discarded.");
    assert_eq!(sandbox.count("raw.rejects"), 2);
    assert!(browser.url().ends_with("/rejects/discard"));
}
