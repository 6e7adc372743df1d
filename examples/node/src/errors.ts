/** The errors of this client, by the reaction to them. Failed calls are grpc-js's own `ServiceError`s. */

/** Bytes were damaged in transit: ask for them again. */
export class DamagedError extends Error {}

/** The server contradicts the contract, or asks for something that this client can't do: stop. */
export class UnexpectedError extends Error {}

/** An error in the command line. */
export class UsageError extends Error {}
