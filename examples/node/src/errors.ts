/** What can go wrong here, by what is done next. Failed calls are grpc-js's own `ServiceError`s. */

/** Bytes were damaged on the way: ask for them again. */
export class DamagedError extends Error {}

/** What came isn't what the contract says, or asks for what this client can't do: stop. */
export class UnexpectedError extends Error {}

/** Of the command line, for the one who typed it. */
export class UsageError extends Error {}
