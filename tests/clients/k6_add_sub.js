// A short native gRPC load that learns the protocol by reflection: k6 run -e SCONCE_GRPC=host:port k6_add_sub.js
import { check } from 'k6';
import { Client, StatusOK } from 'k6/net/grpc';

export const options = {
  vus: 4,
  duration: __ENV.SCONCE_K6_DURATION || '5s',
  thresholds: {
    checks: ['rate==1'],
    iterations: ['count>100'],
    grpc_req_duration: ['p(95)<500'],
  },
  summaryTrendStats: ['med', 'p(95)', 'p(99)', 'max'],
};

const client = new Client();
const left = Array.from({ length: 16 }, (_, i) => i);
const right = left.map(() => 2);
const input = (name, values) => ({ name, datatype: 'FP32', shape: [1, 16], contents: { fp32_contents: values } });

let connected = false;

function connect() {
  if (connected) return;
  client.connect(__ENV.SCONCE_GRPC, { plaintext: true, reflect: true, timeout: '10s' });
  connected = true;
}

// k6 registers reflected types process-wide, and panics when two users do so at once: one goes first, alone.
export function setup() {
  connect();
  client.close();
}

export default function () {
  connect();
  const answer = client.invoke('inference.GRPCInferenceService/ModelInfer', {
    model_name: 'add_sub',
    inputs: [input('INPUT0', left), input('INPUT1', right)],
  });
  check(answer, {
    'status is OK': (r) => r && r.status === StatusOK,
    'sum and difference are right': (r) => {
      const outputs = (r && r.message && r.message.outputs) || [];
      return outputs.length === 2 && left.every((value, i) =>
        outputs[0].contents.fp32Contents[i] === value + 2 && outputs[1].contents.fp32Contents[i] === value - 2);
    },
  });
}
