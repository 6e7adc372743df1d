/** The client's part of SCAFFOLD (docs/wire.md, Control variates), without a socket. */

import type { WholeComponent } from "./download.js";
import { UnexpectedError } from "./errors.js";

const PREFIX = "control:";

/** By scope, a number for each element of the component. */
export type Vectors = Map<string, Float32Array>;

/**
 * Split a slice: the model's components, which an update has too, and the server's variates by their component's scope.
 * Components that the round leaves as they are belong to neither.
 */
export function split(slice: WholeComponent[]): { model: WholeComponent[]; controls: Vectors } {
  const received = slice.filter(({ layout }) => !layout.readOnly);
  const isControl = ({ layout }: WholeComponent) => layout.scope.startsWith(PREFIX);
  const controls = received.filter(isControl).map(({ layout, bytes }): [string, Float32Array] => {
    return [layout.scope.slice(PREFIX.length), float32s(bytes)];
  });
  return { model: received.filter((component) => !isControl(component)), controls: new Map(controls) };
}

/** The client's own control variates: the mean gradient of its last training. Missing variates are 0. */
export class Variates {
  /** @param round the `base_round` of the update that the variates come from; 0 for none. */
  constructor(
    readonly round = 0,
    private readonly own: Vectors = new Map(),
  ) {}

  /** The variates at the beginning of a round. Variates from before the server's began are void. */
  begin(since: number): Variates {
    return this.round < since ? new Variates() : this;
  }

  /**
   * The correction of the gradients: the server's variates minus the client's own. Undefined if the server has none.
   *
   * @throws UnexpectedError the variates don't have as many numbers as the model, or the model isn't float32.
   */
  corrections(model: WholeComponent[], controls: Vectors): Vectors | undefined {
    if (controls.size === 0) return undefined;
    const corrections = model.map(({ layout: { scope, tensors }, bytes }): [string, Float32Array] => {
      const isFloat32 = tensors.every(({ dtype }) => dtype === "ELEMENT_TYPE_FLOAT32");
      const [server, own] = [controls.get(scope), this.own.get(scope)];
      // This example can't compute with other dtypes.
      if (!isFloat32 || server?.length !== bytes.length / 4 || (own && own.length !== server.length)) {
        throw new UnexpectedError(`expected ${scope} in float32, and ${PREFIX}${scope} with as many numbers`);
      }
      return [scope, server.map((x, i) => x - (own?.[i] ?? 0))];
    });
    return new Map(corrections);
  }

  /**
   * The variates for when the update counts: own - server's - delta / rateSum.
   *
   * @param round the update's `base_round`.
   * @param sent the update's components, which are deltas.
   * @param rateSum the sum of the steps' learning rates. With 0 the variates don't change.
   */
  following(round: number, corrections: Vectors, sent: WholeComponent[], rateSum: number): Variates {
    if (rateSum === 0) return this;
    const own = sent.map(({ layout: { scope }, bytes }): [string, Float32Array] => {
      return [scope, float32s(bytes).map((delta, i) => -corrections.get(scope)![i]! - delta / rateSum)];
    });
    return new Variates(round, new Map(own));
  }
}

/** A component's numbers, in place. Typed arrays are little-endian on most machines; main.ts checks it. */
export function float32s(bytes: Uint8Array<ArrayBuffer>): Float32Array {
  return new Float32Array(bytes.buffer, bytes.byteOffset, Math.floor(bytes.length / 4));
}
