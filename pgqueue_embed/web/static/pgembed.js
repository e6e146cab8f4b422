// Streams of what moves: none for a page that nobody sees (a browser has six connections to a
// server, and a person more tabs), and a word when the connection is lost.
"use strict";
(() => {
  class Stream extends EventTarget {
    constructor(url) {
      super();
      this.url = url;
      this.ended = false;
      this.names = new Map();
      this.open();
      this.seen = () => (document.hidden ? this.rest() : this.open());
      document.addEventListener("visibilitychange", this.seen);
    }
    get readyState() {
      return this.source ? this.source.readyState : EventSource.CONNECTING;
    }
    open() {
      if (this.ended || this.source || document.hidden) return;
      const source = (this.source = new EventSource(this.url));
      source.onopen = (event) => {
        document.body.classList.remove("lost");
        if (this.onopen) this.onopen(event);
      };
      source.onerror = (event) => {
        document.body.classList.add("lost");
        if (source.readyState === EventSource.CLOSED) {
          this.rest();
          setTimeout(() => this.open(), 3000);
        }
      };
      for (const name of this.names.keys()) source.addEventListener(name, this.pass);
    }
    pass = (event) => {
      for (const listener of this.names.get(event.type) || []) listener(event);
    };
    addEventListener(name, listener) {
      if (!this.names.has(name)) {
        this.names.set(name, new Set());
        if (this.source) this.source.addEventListener(name, this.pass);
      }
      this.names.get(name).add(listener);
    }
    removeEventListener(name, listener) {
      this.names.get(name)?.delete(listener);
    }
    rest() {
      this.source?.close();
      this.source = undefined;
    }
    close() {
      this.ended = true;
      document.removeEventListener("visibilitychange", this.seen);
      this.rest();
    }
  }
  htmx.createEventSource = (url) => new Stream(url);
  // What was refused is shown where the answer was wanted, too.
  document.addEventListener("htmx:beforeSwap", (event) => {
    if (event.detail.xhr && event.detail.xhr.status >= 400) event.detail.shouldSwap = true;
  });
})();
