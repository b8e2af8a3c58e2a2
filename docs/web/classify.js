// A file that `edgeladder deploy --portable --include-resize` wrote, run by onnxruntime-web.
// docs/deploy.md says what lies beside this page.
import * as ort from "./ort.wasm.bundle.min.mjs";

const MODEL = new URLSearchParams(location.search).get("model") ?? "model.onnx";
const NAMED = 5; // answers, at most

ort.env.wasm.numThreads = 1; // more need a page isolated from others (COOP and COEP headers)

// The metadata of an ONNX file (bytes): field 14 of its ModelProto, pairs of key and value. The
// graph, which is nearly all of it, is stepped over by its length.
function metadata(bytes) {
  const words = new TextDecoder();
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let scale = 1, byte = 128; byte > 127; scale *= 128) {
      byte = bytes[at++];
      value += (byte & 127) * scale;
    }
    return value;
  };
  const fields = function* (end) {
    while (at < end) {
      const tag = varint();
      const kind = tag % 8;
      if (kind === 2) {
        const length = varint();
        yield [(tag - kind) / 8, at, (at += length)];
      } else if (kind === 0) varint();
      else at += kind === 1 ? 8 : 4;
    }
  };
  const told = {};
  for (const [number, start, end] of fields(bytes.length)) {
    if (number !== 14) continue;
    at = start;
    const pair = {};
    for (const [key, from, to] of fields(end)) pair[key] = words.decode(bytes.subarray(from, to));
    told[pair[1]] = pair[2];
    at = end;
  }
  return told;
}

// A picture file's pixels, upright: uint8 (1, height, width, 3).
async function pixels(file) {
  const image = await createImageBitmap(file, {
    colorSpaceConversion: "none",
    premultiplyAlpha: "none",
  });
  const { width, height } = image;
  const canvas = new OffscreenCanvas(width, height).getContext("2d");
  canvas.drawImage(image, 0, 0);
  const rgba = canvas.getImageData(0, 0, width, height).data;
  const rgb = new Uint8Array(3 * width * height);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    rgb[to++] = rgba[from];
    rgb[to++] = rgba[from + 1];
    rgb[to++] = rgba[from + 2];
  }
  return new ort.Tensor("uint8", rgb, [1, height, width, 3]);
}

const say = (words) => (document.getElementById("status").textContent = words);

function show(names, shares, known, threshold) {
  const best = [...names.keys()].sort((a, b) => shares[b] - shares[a]).slice(0, NAMED);
  document.getElementById("answers").replaceChildren(
    ...best.map((place) => {
      const line = document.createElement("li");
      const meter = Object.assign(document.createElement("meter"), { value: shares[place] });
      line.append(`${names[place]} ${(100 * shares[place]).toFixed(2)} %`, meter);
      return line;
    }),
  );
  return known !== undefined && known < threshold ? "probably none of these" : "done";
}

async function main() {
  const answer = await fetch(MODEL);
  if (!answer.ok) throw new Error(`${MODEL} is not beside this page: ${answer.status}`);
  const bytes = new Uint8Array(await answer.arrayBuffer());
  const told = metadata(bytes);
  if (told.include_resize !== "true") throw new Error("deploy the file with --include-resize");
  const names = JSON.parse(told.class_names);
  // int8 weights are multiplied in float32, as predict does
  const options = Object.entries(JSON.parse(told.session_config)).map(([key, value]) => [
    key.replace("session.", ""),
    value,
  ]);
  const session = await ort.InferenceSession.create(bytes, {
    executionProviders: ["wasm"],
    extra: { session: Object.fromEntries(options) },
  });
  const input = document.getElementById("picture");
  input.addEventListener("change", async () => {
    try {
      say("looking");
      const file = input.files[0];
      const shown = document.getElementById("shown");
      shown.src = URL.createObjectURL(file);
      shown.hidden = false;
      const found = await session.run({ picture: await pixels(file) });
      const known = found.known?.data[0];
      say(show(names, found.probabilities.data, known, Number(told.known_threshold)));
    } catch (error) {
      say(`failed: ${error.message}`);
    }
  });
  input.disabled = false;
  say("ready");
}

main().catch((error) => say(`failed: ${error.message}`));
