// The official OpenAI SDK for TypeScript: images made, edited and streamed, and errors as its own classes.
import OpenAI, { toFile } from "openai";

const { GATEWAY_URL, GATEWAY_API_KEY, BROKE_KEY } = process.env;
const baseURL = `${GATEWAY_URL}/v1`;
const client = new OpenAI({ apiKey: GATEWAY_API_KEY, baseURL, maxRetries: 0 });
const ask = { model: "gpt-image-2", prompt: "a red circle", size: "1024x1024", quality: "low" };

const made = await client.images.generate(ask);
const png = Buffer.from(made.data[0].b64_json, "base64");
const edited = await client.images.edit({
  ...ask,
  image: await toFile(png, "circle.png", { type: "image/png" }),
});
const events = [];
for await (const event of await client.images.generate({ ...ask, stream: true, partial_images: 1 })) {
  events.push(event.type);
}

const refusal = (error) => ({ class: error.constructor.name, status: error.status, code: error.code, message: error.message });
const failed = (key, changes = {}) =>
  new OpenAI({ apiKey: key, baseURL, maxRetries: 2 }).images
    .generate({ ...ask, ...changes })
    .then(() => null, refusal);
console.log(
  JSON.stringify({
    generated: png.subarray(1, 4).toString(),
    usage: made.usage,
    edited: Buffer.from(edited.data[0].b64_json, "base64").subarray(1, 4).toString(),
    events,
    errors: {
      broke: await failed(BROKE_KEY),
      unknown: await failed("igw_live_unknown"),
      model: await failed(GATEWAY_API_KEY, { model: "gpt-image-99" }),
      size: await failed(GATEWAY_API_KEY, { size: "1000x1000" }),
    },
  }),
);
