// What openai's users call, in each of its majors.
const { default: OpenAI, toFile } = await import(process.env.OPENAI_PACKAGE);
const { VERSION } = await import(`${process.env.OPENAI_PACKAGE}/version`);

// Retries would hide the answer under test.
const client = new OpenAI({ maxRetries: 0 });

const file = (data) => data && toFile(data, "image.png", { type: "image/png" });
const withFiles = async ({ image, mask, ...fields }) => ({
  ...fields,
  image: Array.isArray(image) ? await Promise.all(image.map(file)) : await file(image),
  ...(mask && { mask: await file(mask) }),
});

async function all(events) {
  const list = [];
  for await (const event of await events) list.push(event);
  return list;
}

export const version = () => VERSION;
export const draw = ({ key, max_retries = 0, ...fields }) =>
  client.withOptions({ maxRetries: max_retries, ...(key && { apiKey: key }) }).images.generate(fields);
export const stream = (fields) => all(client.images.generate({ ...fields, stream: true }));
export const edit = async (fields) => client.images.edit(await withFiles(fields));
export const edit_stream = async (fields) =>
  all(client.images.edit({ ...(await withFiles(fields)), stream: true }));
export const vary = async (fields) => client.images.createVariation(await withFiles(fields));
export const models = async () => (await all(client.models.list())).map((model) => model.id);
export const model = ({ name }) => client.models.retrieve(name);

export const explain = ({ status, code, type, param, error }) => ({
  status,
  code,
  type,
  param,
  // Without the status, which the client puts before it.
  ...(error?.message && { message: error.message }),
});
