// The exact two-sided sign test, to the last bit what Python's integers give.

/** Probability of a split at least as uneven as `wins` to `losses` if both sides were equal. */
const signTest = (wins, losses) => {
  const count = wins + losses;
  let ways = 1n, total = 0n; // ways = C(count, k)
  for (let k = 0; k <= Math.min(wins, losses); k++) {
    total += ways;
    ways = ways * BigInt(count - k) / BigInt(k + 1);
  }
  total *= 2n;
  if (total >= 1n << BigInt(count)) return 1;
  // round once, from the first 64 bits with the rest as one last bit, then move the binary point
  const spare = Math.max(total.toString(2).length - 64, 0);
  const head = total >> BigInt(spare);
  const rest = head << BigInt(spare) === total ? 0n : 1n;
  let value = Number(head | rest);
  for (let shift = spare - count; shift < 0; shift += 512) value *= 2 ** Math.max(shift, -512);
  return value;
};
