import { describe, expect, it } from 'vitest'
import { broadcastShape, countOf, sameShape, shapeText } from '../../lib/base/shape.js'
import { parseSignature } from '../../lib/base/signature.js'

describe('parseSignature', () => {
  it('reads names, dims, dtypes, marks and attributes', () => {
    const text = 'x[*,D] w[D] residual[*,D]? m[4]:f32! z[...] -> y[*,D] rstd[*]:f32 t[...]:dtype | eps dtype'
    expect(parseSignature(text)).toEqual({
      text,
      inputs: [
        { name: 'x', dims: ['*', 'D'], dtype: undefined, optional: false, inPlace: false },
        { name: 'w', dims: ['D'], dtype: undefined, optional: false, inPlace: false },
        { name: 'residual', dims: ['*', 'D'], dtype: undefined, optional: true, inPlace: false },
        { name: 'm', dims: ['4'], dtype: 'f32', optional: false, inPlace: true },
        { name: 'z', dims: undefined, dtype: undefined, optional: false, inPlace: false },
      ],
      outputs: [
        { name: 'y', dims: ['*', 'D'], dtype: undefined, optional: false, inPlace: false },
        { name: 'rstd', dims: ['*'], dtype: 'f32', optional: false, inPlace: false },
        { name: 't', dims: undefined, dtype: 'dtype', optional: false, inPlace: false },
      ],
      attributes: ['eps', 'dtype'],
    })
  })

  it('takes ops without inputs, outputs or attributes, and scalars', () => {
    expect(parseSignature('-> y[N]')).toMatchObject({ inputs: [], attributes: [] })
    expect(parseSignature('y[...]! x[...] ->')).toMatchObject({ outputs: [] })
    expect(parseSignature('x[] ->').inputs[0]!.dims).toEqual([])
  })

  it.each(['x[N] y[N]', 'x[N -> y[N]', 'x -> y[N]', 'x[N]:f99 -> y[N]', '1x[N] -> y[N]', 'x[N]* -> y[N]'])(
    'refuses %s',
    (text) => {
      expect(() => parseSignature(text)).toThrow(text)
    },
  )
})

describe('shapes', () => {
  it('broadcast as NumPy does', () => {
    const cases: [number[], number[], number[] | undefined][] = [
      [
        [3, 1],
        [1, 4],
        [3, 4],
      ],
      [[5], [2, 3, 5], [2, 3, 5]],
      [[], [2], [2]],
      [[0], [1], [0]],
      [[0], [3], undefined],
      [[2, 3], [2], undefined],
    ]
    for (const [a, b, c] of cases) {
      expect(broadcastShape(a, b)).toEqual(c)
      expect(broadcastShape(b, a)).toEqual(c)
    }
  })

  it('count, compare and print', () => {
    expect([countOf([]), countOf([2, 3]), countOf([2, 0])]).toEqual([1, 6, 0])
    expect([sameShape([1], [1]), sameShape([1], [1, 1]), sameShape([1, 2], [1, 3])]).toEqual([true, false, false])
    expect([shapeText([]), shapeText([2, 3])]).toEqual(['[]', '[2,3]'])
  })
})
