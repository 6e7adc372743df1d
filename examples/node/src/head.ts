/** The task's head, a linear layer, and the rows that this example trains it on: outputs = weight · features + bias. */

import type { Component, TensorSpec, TrainingPlan } from "./contract.js";
import { UnexpectedError } from "./errors.js";

export const NUM_ROWS = 8;
export const NUM_STEPS = 5;
const LEARNING_RATE = 0.25; // below where descent on rows of length 1 could overshoot

/** What an evaluation measures; the names are those of the update's metrics. */
export type Metrics = { loss: number; accuracy?: number };

/**
 * A head that lives in its component's bytes: what is trained here is what is sent.
 *
 * It stands for a real model. A client with an encoder would run its texts through that, and the head would see the
 * pooled output; this one has fixed features instead, and sends the encoder back as it came.
 */
export class Head {
  private readonly rows: Float64Array[];
  private readonly labels: number[];

  private constructor(
    /** `(outputs, width)`, row by row. */
    private readonly weight: Float32Array,
    /** `(outputs)`. */
    private readonly bias: Float32Array,
    private readonly isRegression: boolean,
  ) {
    const width = weight.length / bias.length;
    this.rows = Array.from({ length: NUM_ROWS }, (_, row) => features(row, width));
    this.labels = this.rows.map((_, row) => (isRegression ? row / NUM_ROWS : row % bias.length));
  }

  /**
   * The head in a component.
   *
   * @param component its table of contents.
   * @param bytes its bytes.
   * @param plan says whether the head is a classification's or a regression's.
   * @throws UnexpectedError the tensors are others than a linear layer's, or don't go with the plan.
   */
  static in(component: Component, bytes: Uint8Array<ArrayBuffer>, plan: TrainingPlan): Head {
    const prefix = `heads.${component.scope.replace(/^task:/, "")}`;
    const weight = tensorOf(component, `${prefix}.weight`, 2);
    const bias = tensorOf(component, `${prefix}.bias`, 1);
    const isRegression = plan.taskType === "TASK_TYPE_REGRESSION";
    // A client with rows of its own compares `plan.taskType` and `plan.labels` with theirs here, and stops if they differ.
    // Our rows know their labels by number alone, so there must be as many outputs as the plan has labels.
    const numOutputs = plan.taskType === "TASK_TYPE_UNSPECIFIED" ? bias.shape[0] : isRegression ? 1 : plan.labels.length;
    if (bias.shape[0] !== numOutputs || weight.shape[0] !== numOutputs || numOutputs === 0) {
      throw new UnexpectedError(
        `${component.scope}: a head of ${weight.shape[0]} outputs, for ${plan.labels.length} labels (${plan.taskType})`,
      );
    }
    return new Head(view(weight, bytes), view(bias, bytes), isRegression);
  }

  /** Mean loss over the rows, and the share of them that is classified right. */
  evaluate(): Metrics {
    const results = this.rows.map((row, i) => this.result(row, this.labels[i]!));
    const loss = mean(results.map((result) => result.loss));
    return this.isRegression ? { loss } : { loss, accuracy: mean(results.map((result) => Number(result.isRight))) };
  }

  /** A few steps of gradient descent over all rows. */
  train(): void {
    for (let step = 0; step < NUM_STEPS; step++) this.step();
  }

  private step(): void {
    const slopes = this.rows.map((row, i) => this.result(row, this.labels[i]!).slopes);
    const rate = LEARNING_RATE / NUM_ROWS;
    this.rows.forEach((row, i) => {
      slopes[i]!.forEach((slope, output) => {
        this.bias[output]! -= rate * slope;
        row.forEach((feature, j) => (this.weight[output * row.length + j]! -= rate * slope * feature));
      });
    });
  }

  /** One row's loss (cross entropy, or the squared error), and its derivatives by the outputs. */
  private result(row: Float64Array, label: number): { loss: number; isRight: boolean; slopes: number[] } {
    const outputs = Array.from(this.bias, (bias, output) => bias + this.product(row, output));
    if (this.isRegression) {
      const error = outputs[0]! - label;
      return { loss: error ** 2, isRight: error === 0, slopes: [2 * error] };
    }
    const largest = Math.max(...outputs);
    const powers = outputs.map((output) => Math.exp(output - largest));
    const sum = powers.reduce((a, b) => a + b);
    return {
      loss: Math.log(sum) - (outputs[label]! - largest),
      isRight: outputs.indexOf(largest) === label,
      slopes: powers.map((power, output) => power / sum - Number(output === label)),
    };
  }

  private product(row: Float64Array, output: number): number {
    return row.reduce((sum, feature, j) => sum + feature * this.weight[output * row.length + j]!, 0);
  }
}

/** One row's features: always the same, unlike the other rows', of length 1. */
function features(row: number, width: number): Float64Array {
  const waves = Float64Array.from({ length: width }, (_, j) => Math.sin((row + 1) * (j + 1)));
  const length = Math.hypot(...waves);
  return waves.map((wave) => wave / length);
}

function tensorOf(component: Component, name: string, dimensions: number): TensorSpec {
  const tensor = component.tensors.find((one) => one.name === name);
  if (tensor?.dtype !== "ELEMENT_TYPE_FLOAT32" || tensor.shape.length !== dimensions) {
    throw new UnexpectedError(`${component.scope}: expected ${name} as float32 of ${dimensions} dimensions`);
  }
  return tensor;
}

/** A float32 tensor's numbers, in place. Typed arrays are little-endian where Node.js is at home; main.ts checks. */
function view(tensor: TensorSpec, bytes: Uint8Array<ArrayBuffer>): Float32Array {
  const count = tensor.shape.reduce((product, size) => product * size, 1);
  return new Float32Array(bytes.buffer, bytes.byteOffset + tensor.offset, count);
}

function mean(numbers: number[]): number {
  return numbers.reduce((a, b) => a + b) / numbers.length;
}
