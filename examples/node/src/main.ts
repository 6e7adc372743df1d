#!/usr/bin/env node
/** The command line. */

import { readFileSync } from "node:fs";
import { endianness } from "node:os";
import { parseArgs } from "node:util";

import { credentials, type ServiceError } from "@grpc/grpc-js";

import { Api, messageOf } from "./api.js";
import { DamagedError, UnexpectedError, UsageError } from "./errors.js";
import { takePart } from "./session.js";
import { checkVectors } from "./vectors.js";

const USAGE = `usage: fedmtl-node train --server HOST:PORT --task TASK --client-id ID [--token-file FILE]
       fedmtl-node vectors DIR`;

const EXIT_CODES = { SIGINT: 130, SIGTERM: 143 };

async function main(): Promise<void> {
  const [command, ...rest] = process.argv.slice(2);
  if (endianness() !== "LE") throw new UnexpectedError("this example's typed arrays need a little-endian machine");
  if (command === "train") await train(rest);
  else if (command === "vectors") vectors(rest);
  else throw new UsageError(command === undefined ? "expected a command" : `unknown command ${command}`);
}

async function train(args: string[]): Promise<void> {
  const options = trainOptions(args);
  const token = options["token-file"] === undefined ? undefined : tokenIn(options["token-file"], options.server);
  const log = (line: string) => console.log(line);
  const api = new Api(options.server, credentials.createInsecure(), options["client-id"], options.task, token, log);
  for (const [signal, code] of Object.entries(EXIT_CODES)) {
    process.once(signal, () => {
      process.exitCode = code;
      api.close();
    });
  }
  try {
    await api.connect();
    await takePart(api, log);
  } catch (error) {
    if (!process.exitCode) throw error;
    log("interrupted");
  } finally {
    api.close();
  }
}

function vectors(args: string[]): void {
  const { positionals } = parsed(() => parseArgs({ args, allowPositionals: true }));
  if (positionals.length !== 1) throw new UsageError("expected one folder of vectors");
  console.log(`${checkVectors(positionals[0]!)} vectors passed`);
}

function trainOptions(args: string[]) {
  const string = { type: "string" } as const;
  const options = { server: string, task: string, "client-id": string, "token-file": string };
  const { server, task, "client-id": clientId, "token-file": tokenFile } = parsed(() => parseArgs({ args, options })).values;
  if (!server || !task || !clientId) throw new UsageError("--server, --task and --client-id are needed");
  if (!/^.+:\d{1,5}$/.test(server)) throw new UsageError(`--server: expected HOST:PORT, got ${server}`);
  return { server, task, "client-id": clientId, "token-file": tokenFile };
}

/** Errors in the command line are `TypeError`s of Node.js; their messages are shown to the user. */
function parsed<T>(parse: () => T): T {
  try {
    return parse();
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}

/** The token in a file. This example has no TLS, so it sends a token only to this machine. */
function tokenIn(path: string, server: string): string {
  if (!/^(localhost|127\.[\d.]+|\[::1\]):\d+$/.test(server)) {
    throw new UnexpectedError(`--token-file: ${server} may be another machine, and the token would go there in the clear`);
  }
  let token: string;
  try {
    token = readFileSync(path, "utf8").trim();
  } catch (error) {
    throw new UnexpectedError(`--token-file: ${(error as Error).message}`);
  }
  if (!/^[!-~]+$/.test(token)) throw new UnexpectedError(`--token-file: expected one token in ${path}`); // never shows the content
  return token;
}

main().catch((error: unknown) => {
  if (error instanceof UsageError) {
    console.error(`${error.message}\n${USAGE}`);
    process.exitCode = 2;
  } else {
    console.error(isExpected(error) ? `error: ${messageOf(error)}` : error);
    process.exitCode = 1;
  }
});

/** Whether only an error's message is shown; other errors are bugs of this program, and show their stack. */
function isExpected(error: unknown): boolean {
  return error instanceof UnexpectedError || error instanceof DamagedError || typeof (error as ServiceError).code === "number";
}
