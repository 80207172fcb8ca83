// Keeps the page live while it is looked at. Without this script everything is there after a reload.
"use strict";
(function () {
  var source = null;
  var note = document.getElementById("live");

  function say(text) {
    if (note && note.textContent !== text) note.textContent = text;
  }

  // Replaces the contents of a section that has changed. What is open stays open, and the focus stays where it is.
  function show(event) {
    var part = JSON.parse(event.data);
    var section = document.getElementById(part.id);
    if (!section) return;
    var focused = section.contains(document.activeElement) ? document.activeElement.id : "";
    var open = [].map.call(section.querySelectorAll("details[open]"), function (details) { return details.id; });
    section.innerHTML = part.html;
    open.forEach(function (id) {
      var details = document.getElementById(id);
      if (details) details.open = true;
    });
    var again = focused && document.getElementById(focused);
    if (again) again.focus({ preventScroll: true });
  }

  function start() {
    if (source || document.hidden) return;
    source = new EventSource("/api/live");
    source.addEventListener("part", show);
    source.onopen = function () { say("live"); };
    source.onerror = function () {
      say("not live: connecting again");
      if (source && source.readyState === EventSource.CLOSED) {
        stop();
        window.setTimeout(start, 3000);
      }
    };
  }

  function stop() {
    if (source) source.close();
    source = null;
    say("paused");
  }

  document.addEventListener("visibilitychange", function () {
    if (document.hidden) stop(); else start();
  });
  if (document.getElementById("pipeline") && "EventSource" in window) start();
})();
