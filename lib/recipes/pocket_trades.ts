// The 16 trades of the pocket world and what each of them counts, stores, gains and loses in a word problem. No item is
// also a good, a food or a pet of the world, so that a story never seems to state a fact.

import type { Noun } from './pocket_english.js'

export interface Trade {
  name: string
  item: Noun
  container: Noun
  /** Third person singular, before "5 more loaves". */
  gains: string
  /** Third person singular, before "5 loaves". */
  loses: string
}

function trade(name: string, item: string, container: string, verbs: string): Trade {
  const [gains, loses] = verbs.split('/')
  return { name, item: noun(item), container: noun(container), gains: gains!, loses: loses! }
}

function noun(forms: string): Noun {
  const [one, many] = forms.split('/')
  return { one: one!, many: many! }
}

export const TRADES: readonly Trade[] = [
  trade('baker', 'loaf/loaves', 'tray/trays', 'bakes/sells'),
  trade('farmer', 'egg/eggs', 'basket/baskets', 'collects/sells'),
  trade('florist', 'rose/roses', 'vase/vases', 'cuts/wraps up'),
  trade('potter', 'bowl/bowls', 'shelf/shelves', 'makes/breaks'),
  trade('weaver', 'scarf/scarves', 'chest/chests', 'weaves/sells'),
  trade('tailor', 'shirt/shirts', 'rack/racks', 'sews/sells'),
  trade('carpenter', 'chair/chairs', 'stack/stacks', 'builds/delivers'),
  trade('beekeeper', 'jar/jars', 'crate/crates', 'fills/sells'),
  trade('librarian', 'book/books', 'bookcase/bookcases', 'orders/lends out'),
  trade('teacher', 'pencil/pencils', 'box/boxes', 'buys/hands out'),
  trade('jeweller', 'ring/rings', 'case/cases', 'forges/sells'),
  trade('cobbler', 'sandal/sandals', 'bin/bins', 'stitches/ships'),
  trade('toymaker', 'puppet/puppets', 'trunk/trunks', 'carves/sells'),
  trade('printer', 'poster/posters', 'folder/folders', 'prints/hands out'),
  trade('fisher', 'herring/herrings', 'bucket/buckets', 'catches/sells'),
  trade('gardener', 'seedling/seedlings', 'tub/tubs', 'grows/plants out'),
]
