// Keeps the page live while it is looked at. Without this script everything is there after a reload.
"use strict";
(function () {
  var source = null;
  var note = document.getElementById("live");

  function say(text) {
    if (note && note.textContent !== text) note.textContent = text;
  }

  // Replaces the contents of a section that has changed. What is open stays open, what is scrolled stays there, and so does
  // the focus.
  function show(event) {
    var part = JSON.parse(event.data);
    var section = document.getElementById(part.id);
    if (!section) return;
    var focused = section.contains(document.activeElement) ? document.activeElement.id : "";
    var open = [].map.call(section.querySelectorAll("details[open]"), function (details) { return details.id; });
    var scrolled = [].map.call(section.querySelectorAll(".scroll"), function (table) { return [table.id, table.scrollLeft]; });
    section.innerHTML = part.html;
    scrolled.forEach(function (place) {
      var table = document.getElementById(place[0]);
      if (table) table.scrollLeft = place[1];
    });
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
