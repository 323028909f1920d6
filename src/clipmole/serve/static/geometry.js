// Boxes [left, top, right, bottom] in pixels of the image: where crops overlap, and where their patches lie.

/** Overlapping crops as cells [left, top, right, bottom, mean score of the crops that cover it]. */
export function cells(tiles) {
  const edges = (a, b) => [...new Set(tiles.flatMap(({ box }) => [box[a], box[b]]))].sort((p, q) => p - q);
  const xs = edges(0, 2), ys = edges(1, 3), found = [];
  for (let i = 0; i + 1 < xs.length; i++)
    for (let j = 0; j + 1 < ys.length; j++) {
      const over = tiles.filter(({ box }) => box[0] <= xs[i] && box[2] >= xs[i + 1] && box[1] <= ys[j] && box[3] >= ys[j + 1]);
      if (over.length) found.push([xs[i], ys[j], xs[i + 1], ys[j + 1], over.reduce((sum, tile) => sum + tile.logit, 0) / over.length]);
    }
  return found;
}

export const area = ([left, top, right, bottom]) => (right - left) * (bottom - top);
export const place = ([left, top, right, bottom]) => `${left}–${right} × ${top}–${bottom}`;
export const inside = ([left, top, right, bottom], x, y) => x >= left && x < right && y >= top && y < bottom;

/** [row, column, value, box] of each patch of a tile, cut to the image where the grid reaches beyond it. */
export function patches(tile, values) {
  const [left, top, right, bottom] = tile.grid_box, [l, t, r, b] = tile.box;
  const wide = (right - left) / values[0].length, high = (bottom - top) / values.length;
  const cut = (row, column) => [Math.max(l, left + column * wide), Math.max(t, top + row * high),
    Math.min(r, left + (column + 1) * wide), Math.min(b, top + (row + 1) * high)];
  return values.flatMap((line, row) => line.map((value, column) => [row, column, value, cut(row, column)]))
    .filter(([, , , [x, y, right, bottom]]) => x < right && y < bottom);
}

export const middle = ([left, top, right, bottom]) => [(left + right) / 2, (top + bottom) / 2];

/** The crop over a point whose own middle is nearest to it, if there is one. */
export function nearest(tiles, x, y) {
  const far = ({ box }) => Math.hypot(middle(box)[0] - x, middle(box)[1] - y);
  return tiles.filter(({ box }) => inside(box, x, y)).reduce((best, tile) => (best && far(best) <= far(tile) ? best : tile), undefined);
}
