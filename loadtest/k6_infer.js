// Inference requests at a constant rate, whatever the server does, found through reflection.
//
// Environment: ADDR (127.0.0.1:8001), RATE requests a second (100), DURATION (10s), MAX_VUS, the most requests in flight (64),
// MODEL (add_sub), VERSION (the server's choice), and for a model that takes text TEXT, which is sent as its input INPUT (text).

import { check } from 'k6';
import encoding from 'k6/encoding';
import grpc from 'k6/net/grpc';

const env = (name, fallback) => __ENV[name] || fallback;
const maxVUs = Number(env('MAX_VUS', 64));

export const options = {
  scenarios: {
    infer: {
      executor: 'constant-arrival-rate',
      rate: Number(env('RATE', 100)),
      timeUnit: '1s',
      duration: env('DURATION', '10s'),
      preAllocatedVUs: maxVUs,
      maxVUs,
    },
  },
  thresholds: { checks: ['rate==1'], dropped_iterations: ['count==0'] },
  summaryTrendStats: ['med', 'p(90)', 'p(99)', 'p(99.9)', 'max'],
};

const row = (value) => ({ fp32_contents: Array.from({ length: 16 }, (_, column) => value * column) });
const addSub = [
  { name: 'INPUT0', datatype: 'FP32', shape: [1, 16], contents: row(1) },
  { name: 'INPUT1', datatype: 'FP32', shape: [1, 16], contents: row(0.5) },
];
const text = (sentence) => [
  {
    name: env('INPUT', 'text'),
    datatype: 'BYTES',
    shape: [1, 1],
    contents: { bytes_contents: [encoding.b64encode(sentence)] },
  },
];

const request = {
  model_name: env('MODEL', 'add_sub'),
  model_version: env('VERSION', ''),
  inputs: __ENV.TEXT ? text(__ENV.TEXT) : addSub,
};

const client = new grpc.Client();

export default function () {
  if (__ITER === 0) {
    client.connect(env('ADDR', '127.0.0.1:8001'), { plaintext: true, reflect: true });
  }
  const response = client.invoke('inference.GRPCInferenceService/ModelInfer', request);
  check(response, { OK: (r) => r.status === grpc.StatusOK });
}
