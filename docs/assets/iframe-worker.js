// The search of the site runs in a worker, but a page that was opened as a file may start none.
// There this class takes the place of Worker: it runs the worker's script in a hidden frame.
if (location.protocol === "file:")
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.waiting = [] // what was sent before the script had run
      const frame = document.createElement("iframe")
      frame.hidden = true
      frame.addEventListener("load", () => this.run(frame.contentWindow, url), { once: true })
      document.body.append(frame)
    }

    run(inside, url) {
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }))
      const script = inside.document.createElement("script")
      script.src = url
      script.onload = () => {
        this.inside = inside
        this.waiting.splice(0).forEach((data) => this.postMessage(data))
      }
      inside.document.body.append(script)
    }

    postMessage(data) {
      if (this.inside) this.inside.dispatchEvent(new MessageEvent("message", { data }))
      else this.waiting.push(data)
    }
  }
