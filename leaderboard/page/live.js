"use strict";
// Served pages only: when runs have finished, the server says so and the page loads anew; the view is in the URL and stays.

new EventSource("/events").addEventListener("changed", () => location.reload());
