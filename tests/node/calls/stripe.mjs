// What stripe's users call for metered billing.
import Stripe from "stripe";

const { hostname, port } = new URL(process.env.STRIPE_URL);
const make = (key) =>
  new Stripe(key, { host: hostname, port, protocol: "http", maxNetworkRetries: 0, telemetry: false });
const client = make(process.env.STRIPE_KEY);

export const customer = (fields) => client.customers.create(fields);
export const found = ({ id }) => client.customers.retrieve(id);
export const wrong_key = () => make("sk_test_wrong").customers.list();
export const product = (fields) => client.products.create(fields);
export const meter = (fields) => client.billing.meters.create(fields);
export const price = (fields) => client.prices.create(fields);
export const subscribe = (fields) => client.subscriptions.create(fields);
export const use = (fields) => client.billing.meterEvents.create(fields);
export const preview = (fields) => client.invoices.createPreview(fields);
export async function customers() {
  const ids = [];
  for await (const one of client.customers.list({ limit: 1 })) ids.push(one.id);
  return ids;
}

export const explain = ({ type, code, param, statusCode }) => ({ kind: type, code, param, status: statusCode });
