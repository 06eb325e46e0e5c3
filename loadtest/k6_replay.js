// Recorded requests at their times: `sconce replay FOLDER --export-k6 data.json` writes them.
//
// Environment: DATA (data.json), ADDR (127.0.0.1:8001), SPEED, times faster than they were recorded (1), and MAX_VUS, the most
// requests in flight (64): one that is due while all wait for an answer is late, which `lateness` says.

import { check, sleep } from 'k6';
import { SharedArray } from 'k6/data';
import exec from 'k6/execution';
import { Trend } from 'k6/metrics';
import grpc from 'k6/net/grpc';

const env = (name, fallback) => __ENV[name] || fallback;
const requests = new SharedArray('requests', () => JSON.parse(open(env('DATA', 'data.json'))));
const maxVUs = Math.min(Number(env('MAX_VUS', 64)), requests.length);
const speed = Number(env('SPEED', 1));

export const options = {
  scenarios: {
    replay: {
      // Iterations are given out in order, each to a user that is free: it waits until its request is due.
      executor: 'shared-iterations',
      vus: maxVUs,
      iterations: requests.length,
      maxDuration: `${Math.ceil(requests[requests.length - 1].after_ms / speed / 1000) + 60}s`,
    },
  },
  thresholds: { checks: ['rate==1'] },
  summaryTrendStats: ['med', 'p(90)', 'p(99)', 'p(99.9)', 'max'],
};

const lateness = new Trend('lateness', true);
const client = new grpc.Client();
const addr = env('ADDR', '127.0.0.1:8001');

// k6 registers reflected types process-wide, and panics when two users do so at once: one goes first, alone.
export function setup() {
  client.connect(addr, { plaintext: true, reflect: true });
  client.close();
  return { start: Date.now() };
}

let connected = false;

export default function ({ start }) {
  if (!connected) {
    client.connect(addr, { plaintext: true, reflect: true });
    connected = true;
  }
  const { after_ms, timeout_ms, metadata, message } = requests[exec.scenario.iterationInTest];
  const due = start + after_ms / speed;
  if (due > Date.now()) {
    sleep((due - Date.now()) / 1000);
  }
  lateness.add(Date.now() - due);
  const response = client.invoke('inference.GRPCInferenceService/ModelInfer', message, {
    metadata,
    timeout: `${timeout_ms}ms`,
  });
  check(response, { OK: (r) => r.status === grpc.StatusOK });
}
