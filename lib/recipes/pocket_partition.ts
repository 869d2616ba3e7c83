// Which set a prompt belongs to, decided by a hash of the prompt alone. So the sets are disjoint in whatever order they
// are drawn and however large they grow, and no run has to remember what another stage has used.

/** The sets that draw prompts. Giving a set its share from `reserve` moves no prompt of any other set. */
export type PromptSet = 'held_out' | 'sft' | 'pairs' | 'rl' | 'reserve'

const SHARES: readonly (readonly [PromptSet, number])[] = [
  ['held_out', 0.12],
  ['sft', 0.3],
  ['pairs', 0.2],
  ['rl', 0.33],
  ['reserve', 0.05],
]

export const PROMPT_SETS: readonly PromptSet[] = SHARES.map(([set]) => set)

/** The set that owns a prompt; `key` is what must not be shared: the prompt, or a problem's scenario. */
export function promptSet(key: string): PromptSet {
  let left = hash32(key) / 2 ** 32
  for (const [set, share] of SHARES) {
    left -= share
    if (left < 0) return set
  }
  return 'reserve'
}

/** FNV-1a over UTF-16 units with the finalizer of MurmurHash3, which spreads the last characters over all bits. */
function hash32(text: string): number {
  let hash = 0x811c9dc5
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193)
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b)
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35)
  return (hash ^ (hash >>> 16)) >>> 0
}
