(function () {
  "use strict";
  var root = document.documentElement;

  function key(cell) {
    var text = cell.getAttribute("data-sort");
    if (text === null) return null;
    var value = Number(text);
    return text !== "" && !Number.isNaN(value) ? value : text;
  }

  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b));
  }

  function sort(table, column, up) {
    var body = table.tBodies[0];
    var rows = Array.prototype.slice.call(body.rows).map(function (row, place) {
      return { row: row, place: place, key: key(row.cells[column]) };
    });
    rows.sort(function (a, b) {
      if (a.key === null || b.key === null) {
        return (a.key === null) - (b.key === null) || a.place - b.place;
      }
      return (up ? 1 : -1) * compare(a.key, b.key) || a.place - b.place;
    });
    rows.forEach(function (entry) { body.appendChild(entry.row); });
  }

  document.querySelectorAll("table.data").forEach(function (table) {
    var heads = Array.prototype.slice.call(table.tHead.rows[0].cells);
    heads.forEach(function (head, column) {
      var some = Array.prototype.some.call(table.tBodies[0].rows, function (row) {
        return row.cells[column].hasAttribute("data-sort");
      });
      if (!some || table.tBodies[0].rows.length < 2) return;
      var button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      button.title = "Sort by this column";
      head.textContent = "";
      head.appendChild(button);
      button.addEventListener("click", function () {
        // Numbers are first wanted largest first, names from A, ranks from 1.
        var name = button.textContent;
        var first = head.classList.contains("l") || /rank|^p\b/i.test(name) ? "ascending" : "descending";
        var now = head.getAttribute("aria-sort");
        var next = now === null ? first : now === "ascending" ? "descending" : "ascending";
        heads.forEach(function (other) { other.removeAttribute("aria-sort"); });
        head.setAttribute("aria-sort", next);
        sort(table, column, next === "ascending");
      });
    });
  });

  // The table of contents follows: the first section in the upper part of the window is marked.
  var links = Array.prototype.slice.call(document.querySelectorAll("nav a[href^='#']"));
  var inView = {};
  var watch = new IntersectionObserver(function (entries) {
    entries.forEach(function (entry) { inView[entry.target.id] = entry.isIntersecting; });
    var current = links.filter(function (link) { return inView[link.hash.slice(1)]; })[0];
    if (!current) return;
    links.forEach(function (link) { link.removeAttribute("aria-current"); });
    current.setAttribute("aria-current", "true");
    var list = current.closest("ol"); // scrolled only where it is longer than the window
    if (list) list.scrollTop = current.offsetTop - list.offsetTop - list.clientHeight / 2;
  }, { rootMargin: "-5% 0px -60% 0px" });
  document.querySelectorAll("main section[id]").forEach(function (part) { watch.observe(part); });

  // Figures say what a mark is: on hover, on touch, and by the arrow keys once they have the focus.
  var tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  tip.setAttribute("role", "status");
  document.body.appendChild(tip);
  var near = [[0, 0], [4, 0], [-4, 0], [0, 4], [0, -4], [7, 0], [-7, 0], [0, 7], [0, -7]];

  function markAt(figure, x, y) {
    for (var i = 0; i < near.length; i++) {
      var hit = document.elementFromPoint(x + near[i][0], y + near[i][1]);
      var mark = hit && hit.closest(".mark");
      if (mark && figure.contains(mark)) return mark;
    }
    return null;
  }

  function show(figure, mark, x, y) {
    figure.classList.toggle("picked", mark !== null);
    tip.hidden = mark === null;
    if (!mark) return;
    figure.querySelectorAll(".mark").forEach(function (other) {
      other.classList.toggle("same", other.dataset.name === mark.dataset.name);
    });
    if (tip.textContent !== mark.dataset.tip) tip.textContent = mark.dataset.tip;
    var left = x + 14 + tip.offsetWidth > window.innerWidth ? x - 14 - tip.offsetWidth : x + 14;
    var top = y + 14 + tip.offsetHeight > window.innerHeight ? y - 14 - tip.offsetHeight : y + 14;
    tip.style.left = Math.max(4, left) + "px";
    tip.style.top = Math.max(4, top) + "px";
  }

  document.querySelectorAll(".plot svg").forEach(function (figure) {
    var marks = Array.prototype.slice.call(figure.querySelectorAll(".mark"));
    if (!marks.length) return;
    marks.forEach(function (mark) { // the browser's own tooltip would show as well
      var title = mark.querySelector("title");
      mark.dataset.tip = title.textContent;
      title.remove();
    });
    var stops = marks.filter(function (mark, i) { // an interval and its dot are one stop
      return marks.map(function (other) { return other.dataset.tip; }).indexOf(mark.dataset.tip) === i;
    });
    var at = -1;
    figure.setAttribute("tabindex", "0");
    figure.setAttribute("aria-keyshortcuts", "ArrowRight ArrowLeft Home End Escape");
    function follow(event) {
      show(figure, markAt(figure, event.clientX, event.clientY), event.clientX, event.clientY);
    }
    figure.addEventListener("pointermove", follow);
    figure.addEventListener("pointerdown", follow);
    figure.addEventListener("pointerleave", function () { show(figure, null); });
    figure.addEventListener("blur", function () { show(figure, null); });
    window.addEventListener("scroll", function () { show(figure, null); }, { passive: true });
    figure.addEventListener("keydown", function (event) {
      var to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: stops.length - 1 }[event.key];
      if (event.key === "Escape") show(figure, null);
      if (to === undefined) return;
      event.preventDefault();
      at = (to + stops.length) % stops.length;
      var box = stops[at].getBoundingClientRect();
      show(figure, stops[at], box.left + box.width / 2, box.top + box.height / 2);
    });
  });

  var walls = document.querySelectorAll("#gallery details.wall");
  if (walls.length) {
    var box = document.createElement("p");
    var label = document.createElement("label");
    var input = document.createElement("input");
    box.className = "finder";
    input.type = "search";
    input.placeholder = "words of a caption";
    label.append("Show queries with ", input);
    box.appendChild(label);
    walls[0].parentNode.insertBefore(box, walls[0]);
    input.addEventListener("input", function () {
      var wanted = input.value.trim().toLowerCase();
      walls.forEach(function (wall) {
        var left = 0;
        wall.querySelectorAll(".case").forEach(function (entry) {
          var fits = entry.textContent.toLowerCase().indexOf(wanted) >= 0;
          entry.hidden = !fits;
          left += fits ? 1 : 0;
        });
        wall.hidden = left === 0;
        if (wanted && left) wall.open = true;
      });
    });
  }

  var opened = []; // galleries stay as they are: they would fill page after page
  window.addEventListener("beforeprint", function () {
    opened = Array.prototype.slice.call(document.querySelectorAll("details:not([open]):not(.wall)"));
    opened.forEach(function (entry) { entry.open = true; });
  });
  window.addEventListener("afterprint", function () {
    opened.forEach(function (entry) { entry.open = false; });
  });

  root.dataset.js = "ready";
})();
