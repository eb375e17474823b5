/* Server-sent events out of a stream's bytes, wherever these are cut (HTML Standard, 9.2.6). */

export class EventParser {
  #decoder = new TextDecoder(); // keeps the bytes of a character that is not yet whole
  #text = "";
  #data = [];

  /* The data of the events that `bytes` complete. */
  push(bytes) {
    this.#text += this.#decoder.decode(bytes, { stream: true });
    // A carriage return at the end may be the half of a line's end.
    const lines = this.#text.split(/\r\n|\n|\r(?!$)/);
    this.#text = lines.pop();
    const events = [];
    for (const line of lines) this.#take(line, events);
    return events;
  }

  #take(line, events) {
    if (line === "") {
      if (this.#data.length) events.push(this.#data.join("\n"));
      this.#data = [];
    } else if (line === "data" || line.startsWith("data:")) {
      this.#data.push(line.slice(5).replace(/^ /, ""));
    }
  }
}
