// Numbers as people read them. Binary units for memory, decimal ones for rates and counts.

/** 1536 -> "1.5 KiB". */
export function bytesText(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  let value = bytes
  let unit = 0
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024
    unit++
  }
  return `${unit === 0 ? value : shortNumber(value)} ${units[unit]}`
}

/** 1234567 -> "1.23 M"; below ten thousand every digit is kept. */
export function countText(count: number): string {
  if (!Number.isFinite(count)) return String(count)
  const suffixes = ['', ' k', ' M', ' G', ' T', ' P', ' E', ' Z', ' Y']
  if (Math.abs(count) < 10_000) return Number.isInteger(count) ? grouped(count) : shortNumber(count)
  let value = count
  let suffix = 0
  while (Math.abs(value) >= 1000 && suffix < suffixes.length - 1) {
    value /= 1000
    suffix++
  }
  return `${shortNumber(value)}${suffixes[suffix]}`
}

/** 12345 -> "12,345". */
export function grouped(count: number): string {
  return count.toLocaleString('en-US')
}

/** Three significant digits, without an exponent for ordinary sizes. */
export function shortNumber(value: number): string {
  if (!Number.isFinite(value)) return String(value)
  const size = Math.abs(value)
  if (size >= 100) return value.toFixed(0)
  if (size >= 10) return value.toFixed(1)
  return value.toFixed(2)
}

/** A loss or a rate that may be very small: four significant digits. */
export function measureText(value: number | null | undefined): string {
  if (value === null || value === undefined) return '-'
  if (!Number.isFinite(value)) return String(value)
  if (value === 0) return '0'
  const size = Math.abs(value)
  if (size < 1e-3 || size >= 1e6) return value.toExponential(2).replace('e+', 'e')
  return String(Number(value.toPrecision(4)))
}

/** 125 -> "2 m 05 s". */
export function durationText(seconds: number): string {
  if (!Number.isFinite(seconds)) return '-'
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`
  const whole = Math.round(seconds)
  const two = (value: number) => String(value).padStart(2, '0')
  if (whole < 3600) return `${Math.floor(whole / 60)} m ${two(whole % 60)} s`
  if (whole < 86_400) return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} m`
  return `${grouped(Math.floor(whole / 86_400))} d ${two(Math.floor((whole % 86_400) / 3600))} h`
}

/** 0.1234 -> "12.3 %". */
export function percentText(share: number): string {
  return Number.isFinite(share) ? `${(100 * share).toFixed(1)} %` : '-'
}
