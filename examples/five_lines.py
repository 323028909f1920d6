from clipmole import Detector

detector = Detector.from_pretrained()
detection = detector.detect("examples/astronaut.png")
print(detection.verdict, round(detection.probability, 2))
print(detector.score(["examples/astronaut.png", "examples/rocket.jpg"]))
