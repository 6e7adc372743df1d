// Browsers start no worker from a page that is opened as a file. The search of the site runs in a worker: this one runs
// the worker's script in a hidden frame instead, and is used for files only.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    #scope;
    #loaded;

    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      this.#scope = frame.contentWindow;
      this.#scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.#loaded = new Promise((resolve, reject) => {
        const script = frame.contentDocument.createElement("script");
        script.src = url;
        script.onload = resolve;
        script.onerror = () => reject(new Error(`could not load ${url}`));
        frame.contentDocument.body.append(script);
      });
    }

    postMessage(data) {
      this.#loaded.then(() => this.#scope.dispatchEvent(new MessageEvent("message", { data })));
    }
  };
}
