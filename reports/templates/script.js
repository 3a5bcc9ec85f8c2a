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
  }, { rootMargin: "-5% 0px -60% 0px" });
  document.querySelectorAll("main section[id]").forEach(function (part) { watch.observe(part); });

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
