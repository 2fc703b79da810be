// Pixels, (H, W, C) in one Uint8Array, and what files and pictures have to do with them.

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const GREY = 0;
const RGB = 2;

/** How large one of many images is shown. */
export const TILE_PX = 56;

/** How much to enlarge images of some height, in whole steps, so that pixels stay sharp. */
export function scaleFor(height, targetPx) {
  return Math.min(16, Math.max(1, Math.round(targetPx / height)));
}

/** Encode pixels as a PNG file; a canvas may be blurred against fingerprinting, and adds alpha. */
export async function encodePng(pixels, [channels, height, width]) {
  const stride = channels * width;
  const rows = new Uint8Array(height * (stride + 1)); // each begins with its filter: none
  for (let y = 0; y < height; y++) rows.set(pixels.subarray(y * stride, (y + 1) * stride), y * (stride + 1) + 1);
  const deflated = new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"));
  const header = [...bigEndian(width), ...bigEndian(height), 8, channels === 3 ? RGB : GREY, 0, 0, 0];
  return Uint8Array.from([
    ...SIGNATURE,
    ...chunk("IHDR", header),
    ...chunk("IDAT", new Uint8Array(await new Response(deflated).arrayBuffer())),
    ...chunk("IEND", []),
  ]);
}

export function base64(bytes) {
  return btoa(String.fromCharCode(...bytes));
}

/** The pixels at the end of a .npy file of one image. */
export function pixelsOfNpy(buffer, [channels, height, width]) {
  return new Uint8Array(buffer.slice(buffer.byteLength - channels * height * width));
}

/** Decode a picture file and fit it, whole, into an image of the model's; as the server does, on white. */
export async function pixelsOfFile(file, shape) {
  const [channels, height, width] = shape;
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  const scale = Math.min(width / bitmap.width, height / bitmap.height);
  const [w, h] = [bitmap.width * scale, bitmap.height * scale].map((size) => Math.max(1, Math.round(size)));
  const [left, top] = [(width - w) >> 1, (height - h) >> 1];
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.fillRect(0, 0, width, height);
  context.fillStyle = "white"; // under what is transparent
  context.fillRect(left, top, w, h);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, left, top, w, h);
  bitmap.close();
  const { data } = context.getImageData(0, 0, width, height);
  const pixels = new Uint8Array(channels * height * width);
  for (let i = 0; i < height * width; i++) {
    const [r, g, b] = data.subarray(4 * i);
    if (channels === 3) pixels.set([r, g, b], 3 * i);
    else pixels[i] = Math.round((299 * r + 587 * g + 114 * b) / 1000);
  }
  return pixels;
}

/** Show values on a canvas, one pixel each; `colour` turns index i into [r, g, b]. */
export function paint(canvas, width, height, colour) {
  canvas.width = width;
  canvas.height = height;
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) image.data.set([...colour(i), 255], 4 * i);
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function chunk(kind, data) {
  const body = [...kind].map((letter) => letter.charCodeAt(0)).concat(...data);
  return [...bigEndian(data.length), ...body, ...bigEndian(crc32(body))];
}

function bigEndian(number) {
  return [24, 16, 8, 0].map((shift) => (number >>> shift) & 255);
}

function crc32(bytes) {
  let crc = ~0;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}
