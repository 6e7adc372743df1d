/** The download of a slice from as many streams as necessary, without a socket. Bytes that have arrived are kept. */

import { createHash } from "node:crypto";

import { ArrivingComponent } from "./chunks.js";
import type { Chunk, Component, HeldComponent, SliceHeader } from "./contract.js";
import { decode } from "./encodings.js";
import { DamagedError, UnexpectedError } from "./errors.js";

/** A whole, decoded component. */
export type WholeComponent = { layout: Component; bytes: Uint8Array<ArrayBuffer> };

/** A client's slice of the model, encoder first. */
export type Slice = { header: SliceHeader; components: WholeComponent[] };

export class Download {
  private readonly arriving = new Map<string, ArrivingComponent>();
  private header: SliceHeader | undefined;

  /** What the server need not send again. */
  held(): HeldComponent[] {
    return [...this.arriving.values()]
      .filter(({ numArrived }) => numArrived > 0)
      .map(({ header, numArrived }) => {
        return { scope: header.scope, digest: header.digest, numBytes: numArrived, encoding: header.encoding };
      });
  }

  /** Read a stream's header: allocate new components, and continue those that have arrived in part. */
  begin(header: SliceHeader): void {
    this.header = header;
    for (const component of header.components) {
      const known = this.arriving.get(component.scope);
      const one = known?.isContinuedBy(component) ? known : new ArrivingComponent(component);
      one.continueFrom(component);
      this.arriving.set(component.scope, one);
    }
  }

  /** Read a later message of the stream. */
  add(chunk: Chunk | null | undefined): void {
    const component = chunk && this.arriving.get(chunk.scope);
    if (!component) throw new UnexpectedError("expected a chunk of one of the header's components");
    component.add(chunk);
  }

  /**
   * The slice, once the stream has ended.
   *
   * @throws UnexpectedError bytes are missing, or a component has an encoding that the client didn't ask for.
   * @throws DamagedError a component doesn't have its digest; the component is discarded.
   */
  finish(): Slice {
    const { header } = this;
    if (!header) throw new UnexpectedError("expected a header first in the slice's stream");
    return { header, components: header.components.map((component) => this.decoded(component)) };
  }

  private decoded(layout: Component): WholeComponent {
    const { scope, encodedBytes, digest } = layout;
    const { numArrived, encoded } = this.arriving.get(scope)!;
    if (numArrived !== encodedBytes) throw new UnexpectedError(`${scope}: ${numArrived} of ${encodedBytes} bytes arrived`);
    if (layout.baseDigest.length > 0) throw new UnexpectedError(`${scope}: a difference, which this client didn't ask for`);
    const bytes = decode(layout, encoded);
    if (digest.length > 0 && !createHash("sha256").update(bytes).digest().equals(digest)) {
      this.arriving.delete(scope);
      throw new DamagedError(`${scope}: the bytes don't have the digest that the header gives`);
    }
    return { layout, bytes };
  }
}
