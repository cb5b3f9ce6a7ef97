"use strict";
// Served pages only: reload when the server reports a newer page. The view is in the URL, and stays.

new EventSource("/events").addEventListener("changed", () => location.reload());
