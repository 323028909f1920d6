// Boxes [left, top, right, bottom] in pixels of the image: where crops overlap, and where their patches lie.

export const area = ([left, top, right, bottom]) => (right - left) * (bottom - top);
export const place = ([left, top, right, bottom]) => `${left}–${right} × ${top}–${bottom}`;
export const middle = ([left, top, right, bottom]) => [(left + right) / 2, (top + bottom) / 2];

/** The crops over a point. */
export const over = (tiles, [x, y]) =>
  tiles.filter(({ box: [left, top, right, bottom] }) => x >= left && x < right && y >= top && y < bottom);

/** Overlapping crops as cells [left, top, right, bottom, mean score of the crops that cover it]. */
export function cells(tiles) {
  const edges = (a, b) => [...new Set(tiles.flatMap(({ box }) => [box[a], box[b]]))].sort((p, q) => p - q);
  const xs = edges(0, 2), ys = edges(1, 3);
  const boxes = xs.slice(1).flatMap((right, i) => ys.slice(1).map((bottom, j) => [xs[i], ys[j], right, bottom]));
  return boxes.flatMap((box) => {
    const covering = over(tiles, middle(box));
    return covering.length ? [[...box, covering.reduce((sum, { logit }) => sum + logit, 0) / covering.length]] : [];
  });
}

/** {row, column, value, box} of each patch of a tile, cut to the image where the grid reaches beyond it. */
export function patches(tile, values) {
  const [left, top, right, bottom] = tile.grid_box, [l, t, r, b] = tile.box;
  const wide = (right - left) / values[0].length, high = (bottom - top) / values.length;
  const cut = (row, column) => [Math.max(l, left + column * wide), Math.max(t, top + row * high),
    Math.min(r, left + (column + 1) * wide), Math.min(b, top + (row + 1) * high)];
  return values.flatMap((line, row) => line.map((value, column) => ({ row, column, value, box: cut(row, column) })))
    .filter(({ box }) => box[0] < box[2] && box[1] < box[3]);
}

/** The crop over a point whose own middle is nearest to it. */
export function nearest(tiles, [x, y]) {
  const far = ({ box: [left, top, right, bottom] }) => Math.hypot(left + right - 2 * x, top + bottom - 2 * y);
  return over(tiles, [x, y]).reduce((best, tile) => (far(best) <= far(tile) ? best : tile));
}
