"""Print what an exported detector finds: python predict_without_torch.py MODEL IMAGE..."""

import sys

from evit_runtime import load_model

model = load_model(sys.argv[1])
for result in model(sys.argv[2:], score_threshold=0.3):
    print(f'{result.source}: {len(result)} objects')
    for name, score, box in zip(result.names, result.scores, result.boxes, strict=True):
        left, top, right, bottom = box.round(1).tolist()
        print(f'  {name} {score:.2f}: {left}, {top} to {right}, {bottom}')
