/**
 * The service's noise in JavaScript: a pure function of (seed, index), the same bits as
 * `service/noise.py` gives.
 *
 * Numbers here are doubles, as in NumPy; what is single precision there is rounded once, at the
 * end, by a Float32Array.
 */

const MULTIPLIERS = [0xd2511f53, 0xcd9e8d57];
const KEY_STEPS = [0x9e3779b9, 0xbb67ae85];
const NUM_ROUNDS = 10;
const LOW_BITS = 0xffffffffn;

/** What a draw is for; streams of one (seed, index) are independent of each other. */
export const Stream = Object.freeze({ NOISE: 0, LABEL: 1, BINARIZATION: 2, IMPORTANCE: 3 });

/**
 * Return the upper 32 bits of a product of two unsigned 32-bit words.
 *
 * The product has 64 bits and a double keeps 53, so it is put together from halves of 16 bits.
 * `Math.imul` gives the lower 32.
 */
function multiplyHigh(a, b) {
  const [aLow, aHigh] = [a & 0xffff, a >>> 16];
  const [bLow, bHigh] = [b & 0xffff, b >>> 16];
  const middle = aHigh * bLow + Math.floor((aLow * bLow) / 0x10000);
  const carry = Math.floor(((middle % 0x10000) + aLow * bHigh) / 0x10000);
  return (aHigh * bHigh + Math.floor(middle / 0x10000) + carry) >>> 0;
}

/**
 * Turn a counter of four 32-bit words and a key of two into four random words: Philox4x32-10.
 *
 * Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011,
 * section 3.3.
 */
export function philox([c0, c1, c2, c3], [k0, k1]) {
  for (let round = 0; round < NUM_ROUNDS; round++) {
    [c0, c1, c2, c3] = [
      (multiplyHigh(MULTIPLIERS[1], c2) ^ c1 ^ k0) >>> 0,
      Math.imul(MULTIPLIERS[1], c2) >>> 0,
      (multiplyHigh(MULTIPLIERS[0], c0) ^ c3 ^ k1) >>> 0,
      Math.imul(MULTIPLIERS[0], c0) >>> 0,
    ];
    k0 = (k0 + KEY_STEPS[0]) >>> 0;
    k1 = (k1 + KEY_STEPS[1]) >>> 0;
  }
  return [c0, c1, c2, c3];
}

/**
 * Draw random 32-bit words for one (seed, index) pair.
 *
 * @param {number | bigint | string} seed From 0 to 2⁶⁴ − 1; a number only up to 2⁵³.
 * @param {number | bigint | string} index Number of the image, from 0 to 2⁶³ − 1.
 * @param {number} numWords
 * @param {number} stream Which of the pair's independent streams to read.
 * @returns {Uint32Array} Shape (numWords,).
 */
export function randomBits(seed, index, numWords, stream = Stream.NOISE) {
  const key = split(seed);
  const [indexLow, indexHigh] = split(index);
  const words = new Uint32Array(4 * Math.ceil(numWords / 4));
  for (let block = 0; 4 * block < numWords; block++) {
    words.set(philox([block, stream, indexLow, indexHigh], key), 4 * block);
  }
  return words.subarray(0, numWords);
}

function split(integer) {
  if (typeof integer === "number" && !Number.isSafeInteger(integer)) {
    throw new RangeError(`${integer} is no exact integer: give a BigInt, or text`);
  }
  const value = BigInt(integer);
  if (value < 0n || value >> 64n) throw new RangeError(`${integer} is not in 0…2⁶⁴ − 1`);
  return [Number(value & LOW_BITS), Number(value >> 32n)];
}

/**
 * Draw one row of noise.
 *
 * @param {"uniform" | "normal"} prior On the open interval (0, 1), or standard normal.
 * @param {number | bigint | string} seed
 * @param {number | bigint | string} index
 * @param {number} size Numbers in the row.
 * @returns {Float32Array} Shape (size,).
 */
export function draw(prior, seed, index, size) {
  return Float32Array.from(randomBits(seed, index, size), prior === "uniform" ? uniform : normal);
}

/** Draw the number of a class, from 0 to numClasses − 1. */
export function drawLabel(seed, index, numClasses) {
  const [word] = randomBits(seed, index, 1, Stream.LABEL);
  return Math.floor((word * numClasses) / 2 ** 32);
}

/** Map a word to the open interval (0, 1), exact in single precision: (⌊w / 2⁹⌋ + ½) / 2²³. */
export function uniform(word) {
  return ((word >>> 9) + 0.5) / 2 ** 23;
}

/**
 * Map a word to a standard normal draw by the inverse of the cumulative distribution, in double
 * precision: the four operations are the same everywhere, and where logarithms of two libraries
 * differ in the last of 53 bits, rounding to the 24 of single precision drops it.
 *
 * Source: Wichura, "Algorithm AS 241: The Percentage Points of the Normal Distribution", Applied
 * Statistics 37, 1988, routine PPND16.
 */
export function normal(word) {
  const centred = (word + 0.5) / 2 ** 32 - 0.5;
  if (Math.abs(centred) <= 0.425) return centred * ratio(0.180625 - centred * centred, CENTRE);
  const radius = Math.sqrt(-Math.log(0.5 - Math.abs(centred)));
  return Math.sign(centred) * ratio(radius - 1.6, TAIL);
}

function ratio(x, [numerator, denominator]) {
  return horner(x, numerator) / horner(x, denominator);
}

function horner(x, coefficients) {
  return coefficients.reduceRight((value, coefficient) => value * x + coefficient);
}

// Coefficients of AS 241, lowest order first: numerator, denominator.
const CENTRE = [
  [
    3.387132872796366608, 1.3314166789178437745e2, 1.9715909503065514427e3,
    1.3731693765509461125e4, 4.5921953931549871457e4, 6.7265770927008700853e4,
    3.3430575583588128105e4, 2.5090809287301226727e3,
  ],
  [
    1.0, 4.2313330701600911252e1, 6.871870074920579083e2, 5.3941960214247511077e3,
    2.1213794301586595867e4, 3.930789580009271061e4, 2.8729085735721942674e4,
    5.226495278852854561e3,
  ],
];
const TAIL = [
  [
    1.42343711074968357734, 4.6303378461565452959, 5.7694972214606914055,
    3.64784832476320460504, 1.27045825245236838258, 2.4178072517745061177e-1,
    2.27238449892691845833e-2, 7.7454501427834140764e-4,
  ],
  [
    1.0, 2.05319162663775882187, 1.6763848301838038494, 6.8976733498510000455e-1,
    1.4810397642748007459e-1, 1.51986665636164571966e-2, 5.475938084995344946e-4,
    1.05075007164441684324e-9,
  ],
];
