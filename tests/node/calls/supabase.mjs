// What @supabase/supabase-js's users call of its storage.
import { createClient } from "@supabase/supabase-js";

const { SUPABASE_URL, SUPABASE_KEY, SUPABASE_BUCKET } = process.env;
// The storage needs no WebSocket, which Node has from 22 on.
const realtime = { transport: globalThis.WebSocket ?? class {} };
const { storage } = createClient(SUPABASE_URL, SUPABASE_KEY, { realtime });
const bucket = storage.from(SUPABASE_BUCKET);

// Errors are returned, not thrown; `message` is what the server said.
async function unwrap(answer) {
  const { data, error } = await answer;
  if (error) throw error;
  return data;
}
const bytes = async (blob) => new Uint8Array(await (await blob).arrayBuffer());
const names = async (rows) => (await rows).map((row) => row.name);

export const upload = ({ path, data, kind, options }) =>
  unwrap(bucket.upload(path, data, { contentType: kind, ...options }));
// A Blob goes as a form, a Buffer as it is.
export const upload_form = ({ path, data, kind, options }) =>
  unwrap(bucket.upload(path, new Blob([data], { type: kind }), options));
export const replace = ({ path, data, kind }) =>
  unwrap(bucket.update(path, data, { contentType: kind }));
export const upload_link = ({ path }) => unwrap(bucket.createSignedUploadUrl(path));
export const upload_signed = ({ path, token, data, kind }) =>
  unwrap(bucket.uploadToSignedUrl(path, token, data, { contentType: kind }));
export const download = ({ path }) => bytes(unwrap(bucket.download(path)));
export const list = ({ path, options }) => names(unwrap(bucket.list(path, options)));
export { list as names };
export const info = ({ path }) => unwrap(bucket.info(path));
export const exists = async ({ path }) => (await bucket.exists(path)).data;
export const move = ({ source, target }) => unwrap(bucket.move(source, target));
export const copy = ({ source, target }) => unwrap(bucket.copy(source, target));
export const remove = ({ paths }) => names(unwrap(bucket.remove(paths)));
export const sign = async ({ path, seconds }) =>
  (await unwrap(bucket.createSignedUrl(path, seconds))).signedUrl;
export const sign_many = async ({ paths, seconds }) =>
  (await unwrap(bucket.createSignedUrls(paths, seconds))).map((row) => row.error);
export const public_url = ({ path }) => bucket.getPublicUrl(path).data.publicUrl;
export const buckets = () => names(unwrap(storage.listBuckets()));
export async function make_bucket({ name }) {
  await unwrap(storage.createBucket(name, { public: true, allowedMimeTypes: ["image/png"] }));
  await unwrap(storage.updateBucket(name, { public: false }));
  const made = await unwrap(storage.getBucket(name));
  return [made.name, made.public, made.allowed_mime_types];
}
export async function drop_bucket({ name }) {
  await unwrap(storage.emptyBucket(name));
  return unwrap(storage.deleteBucket(name));
}

export const explain = ({ statusCode }) => ({ status: statusCode });
